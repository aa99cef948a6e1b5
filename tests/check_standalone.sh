#!/usr/bin/env bash
# Usage: check_standalone.sh PYTHON [PYTEST_ARGS...]. Runs prepkit's tests in a copy of the tree without netspace.
set -euo pipefail
python=$1
shift
root=$(realpath "$(dirname "$0")/..")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
git -C "$root" ls-files -z --cached --others --exclude-standard | (cd "$root" && xargs -0 cp --parents -t "$folder")
if [ -d "$root/prepkit/browsing/built" ]; then  # by `make page`; without it, its tests are left out
  cp -r "$root/prepkit/browsing/built" "$folder/prepkit/browsing/"
fi
rm -rf "$folder/netspace" "$folder/tests/netspace" "$folder"/tests/test_{docs,gallery}.py  # these need both
cd "$folder"
# The copy comes before the editable install on the path, so prepkit is the copy's.
export PYTHONPATH="$folder"
"$python" -c "import prepkit, pathlib; assert pathlib.Path(prepkit.__file__).is_relative_to('$folder')"
"$python" -m pytest -p no:cacheprovider "$@"

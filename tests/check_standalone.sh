#!/usr/bin/env bash
# Usage: check_standalone.sh PYTHON. Runs prepkit's tests in a copy of the tree without the netspace folder.
set -euo pipefail
python=$1
root=$(realpath "$(dirname "$0")/..")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
git -C "$root" ls-files -z --cached --others --exclude-standard | (cd "$root" && xargs -0 cp --parents -t "$folder")
rm -rf "$folder/netspace" "$folder/tests/netspace"
cd "$folder"
# The copy comes before the editable install on the path, so prepkit is the copy's.
PYTHONPATH="$folder" "$python" -c "import prepkit, pathlib; assert pathlib.Path(prepkit.__file__).is_relative_to('$folder')"
PYTHONPATH="$folder" "$python" -m pytest -p no:cacheprovider

#!/usr/bin/env bash
# Usage: check_wheel.sh WHEEL BIN. Looks into the wheel, installs it in an empty environment outside the clone, and packs a
# checkpoint and trains a zoo there. basedpyright of BIN checks the types of a project that has nothing else installed.
set -euo pipefail
wheel=$(realpath "$1")
bin=$(realpath "$2")
root=$(realpath "$(dirname "$0")/..")
constraints=$root/constraints.txt
"$bin/python" - "$wheel" "$root" <<'PYTHON'
import subprocess, sys, zipfile
wheel, root = sys.argv[1:]
inside = set(zipfile.ZipFile(wheel).namelist())
listed = subprocess.run(["git", "-C", root, "ls-files", "prepkit", "netspace", "zoo_specs"], capture_output=True, text=True)
files = {f"prepkit/{name}" if name.startswith("zoo_specs/") else name for name in listed.stdout.split()}
if missing := sorted(files - inside):
    sys.exit(f"the wheel lacks {missing}")
if strange := sorted(name for name in inside - files if ".dist-info/" not in name and "/built/" not in name):
    sys.exit(f"the wheel has {strange}, which are not in the clone")
PYTHON
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv --without-pip environment
# shellcheck disable=SC2086
"$bin/python" -m pip --python environment/bin/python install --quiet --no-compile ${PIP_ARGS:-} --constraint "$constraints" "$wheel"
export PATH="$folder/environment/bin:$PATH"
python - <<'PYTHON'
import torch, prepkit
torch.manual_seed(0)
network = prepkit.architecture("resnet8@cifar10").build()
for module in network.modules():
    if isinstance(module, torch.nn.BatchNorm2d):  # fresh statistics would hide every mistake
        module.running_mean.normal_(), module.running_var.uniform_(0.5, 2.0)
torch.save(network.state_dict(), "model.pt")
PYTHON
cp -r "$root/tests/downstream" .
"$bin/basedpyright" --pythonpath environment/bin/python --project downstream
prepkit --version
prepkit info
prepkit arch list > /dev/null
prepkit pack model.pt --width 512
prepkit inspect model.prep.safetensors > /dev/null
prepkit unpack model.prep.safetensors -o unpacked.pt
python - <<'PYTHON'
import torch, prepkit
folded = prepkit.architecture("resnet8@cifar10").build_folded().eval()
folded.load_state_dict(torch.load("unpacked.pt", weights_only=True))
trained = prepkit.architecture("resnet8@cifar10").build().eval()
trained.load_state_dict(torch.load("model.pt", weights_only=True))
images = torch.randn(4, 3, 32, 32)
torch.testing.assert_close(folded(images), trained(images), rtol=1e-4, atol=1e-4)
PYTHON
prepkit zoo specs | grep --quiet chairs_mini
prepkit zoo train chairs_mini zoo --instances 1 --epochs 1  # needs no extra
prepkit zoo verify zoo --rerun 2
if [ -f "$(python -c 'import prepkit; print(prepkit.__path__[0])')/browsing/built/page.js" ]; then
  prepkit zoo view zoo -o page.html
fi
python -c 'from netspace.report._pages import ENVIRONMENT as e; [e.get_template(name) for name in e.list_templates()]' > /dev/null
if ls "$(python -c 'import prepkit; print(prepkit.__path__[0])')/py.typed" > /dev/null; then echo "wheel: passed"; fi

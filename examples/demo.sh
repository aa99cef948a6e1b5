#!/usr/bin/env bash
# `make demo`: a network is trained, packed, drawn and unpacked, and runs as before.
# Usage: demo.sh FOLDER ENVIRONMENT. The environment is made where it is missing; PYTHON and PIP_ARGS are as in the Makefile.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$1
environment=$2
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # more threads take five times as long for so small a network

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
if [ ! -t 1 ] || [ -n "${NO_COLOR:-}" ]; then say() { printf '\n%s\n' "$*"; }; fi

# Run a command that prints nothing, and tell how long it has run and how large the environment is by now.
waiting() {
  local text=$1 began=$SECONDS told=$SECONDS process
  shift
  "$@" &
  process=$!
  trap 'kill "$process" 2> /dev/null; echo; echo "interrupted; make demo goes on."; exit 130' INT TERM
  while kill -0 "$process" 2> /dev/null; do
    if [ -t 1 ]; then
      printf '\r%s: %d s, %s ' "$text" $((SECONDS - began)) "$(size)"
    elif [ $((SECONDS - told)) -ge 10 ]; then
      told=$SECONDS
      printf '%s: %d s, %s\n' "$text" $((SECONDS - began)) "$(size)"
    fi
    sleep 1
  done
  trap - INT TERM
  [ ! -t 1 ] || printf '\n'
  wait "$process" || { echo "That failed; mend what is told above, and run make demo again." >&2; exit 1; }
}

size() { du -sm "$environment" 2> /dev/null | awk '{ printf "%d MB on the disk", $1 }'; }

install() {
  "${PYTHON:-python3}" -m venv "$environment"
  # shellcheck disable=SC2086
  "$environment/bin/python" -m pip install -qq --disable-pip-version-check --no-compile ${PIP_ARGS:-} \
    --constraint constraints.txt --editable '.[plots]' scikit-learn
}

run() {
  printf '\n$ %s\n' "$*"
  PATH="$environment/bin:$PATH" "$@"
}

if [ ! -e "$environment/.installed" ]; then
  "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "prepkit needs Python 3.11 or newer; make demo PYTHON=...")'
  say "1. Installing prepkit, torch, matplotlib and scikit-learn in $environment (1.3 GB, for the first time only)"
  waiting "installing" install
  touch "$environment/.installed"
fi
rm -rf "$folder"
mkdir -p "$folder"

say "2. Training a ResNet8 with BatchNorm on 1,297 handwritten digits"
run python examples/digits.py train "$folder/model.pt"

say "3. Packing it into one matrix: BatchNorm is folded, with proof"
run prepkit pack "$folder/model.pt" --width 512 -o "$folder/model.prep.safetensors"
run prepkit show "$folder/model.prep.safetensors" -o "$folder/model.png"

say "4. Unpacking it, and running it in a network written by hand without BatchNorm"
run prepkit unpack "$folder/model.prep.safetensors" -o "$folder/unpacked.pt"
run python examples/digits.py compare "$folder/model.pt" "$folder/unpacked.pt"

say "What to try next"
printf '  %-48s  # %s\n' \
  "source $environment/bin/activate" "once in each terminal" \
  "prepkit inspect $folder/model.prep.safetensors" "the tensors that $folder/model.png shows" \
  "prepkit pack YOUR_MODEL.pt" "a checkpoint of yours; --help has examples" \
  "python examples/digits_zoo.py digits-zoo" "512 networks as a data set, in seconds" \
  "python examples/learn_statistics.py digits-zoo" "a learner that tells accuracies from weights"
echo "docs/tutorial/ goes from a checkpoint to a space of networks, in six steps."

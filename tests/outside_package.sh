#!/usr/bin/env bash
# The outside package in examples/plugin-package, as its users would have it: wheels of sonoscribe and of the package in a
# fresh environment, away from this repository; then listed, described, validated, trained for an epoch, and tested.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/run"
python=${PYTHON:-python3}

say() { printf '\n== %s\n' "$*"; }

say "wheels"
"$python" -m venv "$work/env"
pip="$work/env/bin/pip --quiet --disable-pip-version-check"
# From a copy: setuptools leaves a build folder in the sources, whose old files would go into the next wheel.
mkdir "$work/source" "$work/wheels"
cp -r README.md LICENSE pyproject.toml setup.cfg framework plugins recipes examples "$work/source/"
$pip wheel --no-deps --wheel-dir "$work/wheels" "$work/source" "$work/source/examples/plugin-package"
ls "$work/wheels"

say "a fresh environment"
$pip install --constraint constraints.txt torch
$pip install --constraint constraints.txt "$(echo "$work"/wheels/sonoscribe-*.whl)[${ACCELERATOR:-cpu}]"
$pip install --constraint constraints.txt "$work"/wheels/acme_ultrasound-*.whl pytest

# From here on nothing of the repository is in reach.
cp -r "$root/examples/plugin-package/recipes" "$root/examples/plugin-package/tests" "$work/run/"
cd "$work/run"
export PATH="$work/env/bin:$PATH" ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1
unset PYTHONPATH
python -c 'import framework, sys; assert framework.__file__.startswith(sys.prefix), framework.__file__'

say "listed"
sonoscribe ls encoder > listed.txt  # a file: grep may end before a pipe is read out, which pipefail takes for a failure
cat listed.txt
grep --quiet "acme/wavelet" listed.txt
sonoscribe ls --broken
sonoscribe describe encoder/acme/wavelet
sonoscribe describe metric/acme/length_ratio
say "validated"
sonoscribe validate recipes/wavelet.yaml
say "copied and planned"
sonoscribe cp recipes/wavelet.yaml mine.yaml
sonoscribe plan mine.yaml
say "trained"
accelerate launch -m framework.cli recipes/wavelet.yaml train.epochs=1 run.name=one > train.log 2>&1 ||
  { cat train.log; exit 1; }
python -c 'import json; scores = json.load(open("runs/wavelet/one/scores.json"))["test"]["model"]
print("length ratio", scores["acme_length_ratio"])'
say "tested"
python -m pytest --quiet tests
say "a plugin of one's own"
sonoscribe new loss mine
python -m pytest --quiet test_mine.py
say "good"

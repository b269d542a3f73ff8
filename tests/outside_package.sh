#!/usr/bin/env bash
# Installs examples/plugin-package as its users would: wheels of sonoscribe and of the package in a new environment, outside
# this repository. Then lists, describes, validates, trains for an epoch, loads the model alone, and tests.
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
# From a copy: setuptools leaves a build folder in the sources, and its old files would go into the next wheel.
mkdir "$work/source" "$work/wheels"
cp -r README.md LICENSE pyproject.toml setup.cfg framework plugins recipes examples ./*.py "$work/source/"
$pip wheel --no-deps --wheel-dir "$work/wheels" "$work/source" "$work/source/examples/plugin-package"
ls "$work/wheels"

say "environment"
$pip install --constraint constraints.txt torch
$pip install --constraint constraints.txt "$(echo "$work"/wheels/sonoscribe-*.whl)[${ACCELERATOR:-cpu}]"
$pip install --constraint constraints.txt "$work"/wheels/acme_ultrasound-*.whl pytest

# From here on the repository is not used.
cp -r "$root/examples/plugin-package/recipes" "$root/examples/plugin-package/tests" "$work/run/"
cd "$work/run"
export PATH="$work/env/bin:$PATH" ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1
unset PYTHONPATH
python -c 'import framework, sys; assert framework.__file__.startswith(sys.prefix), framework.__file__'

say "list"
sonoscribe ls encoder > listed.txt  # a file: with a pipe grep may end early, which pipefail reports as a failure
cat listed.txt
grep --quiet "acme/wavelet" listed.txt
sonoscribe ls --broken
sonoscribe describe encoder/acme/wavelet
sonoscribe describe metric/acme/length_ratio
say "validate"
sonoscribe validate recipes/wavelet.yaml
say "copy and plan"
sonoscribe cp recipes/wavelet.yaml mine.yaml
sonoscribe plan mine.yaml
say "train"
accelerate launch -m framework.cli recipes/wavelet.yaml train.epochs=1 run.name=one > train.log 2>&1 ||
  { cat train.log; exit 1; }
python -c 'import json; scores = json.load(open("runs/wavelet/one/scores.json"))["test"]["model"]
print("length ratio", scores["acme_length_ratio"])'
say "report from Python"
sonoscribe data make recipes/wavelet.yaml exams > /dev/null
python -c 'import pathlib, sonoscribe
image = min(pathlib.Path("exams/images").glob("*.png"))
print(sonoscribe.load("runs/wavelet/one").report([image]))'
say "a model alone, in an empty folder"
mkdir "$work/elsewhere" "$work/elsewhere/empty"
cp -r runs/wavelet/one/model "$work/elsewhere/model"
cp "$(find exams/images -name '*.png' | sort | head -n 1)" "$work/elsewhere/exam.png"
mv runs "$work/away"  # the model alone is enough
(cd "$work/elsewhere/empty" && HOME="$work/elsewhere" python -c 'import pathlib, sonoscribe
report = sonoscribe.load("../model").report(["../exam.png"])
assert report.words and not any(pathlib.Path().iterdir()), report
print(report)')
say "test"
python -m pytest --quiet tests
say "new plugin"
sonoscribe new loss mine
python -m pytest --quiet test_mine.py
say "OK"

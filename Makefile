# Every target builds what it needs first. PYTHON is the interpreter that creates the environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A machine with an NVIDIA GPU gets the GPU packages.
ACCELERATOR := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: env env-dev train test test-long fuzz two-hosts package lint format bench docs site clean

env: $(VENV)/.installed
env-dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Sonoscribe needs Python 3.11 or newer: make env PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.cfg constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[$(ACCELERATOR),deepspeed]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[$(ACCELERATOR),deepspeed,all,dev]'
	@touch $@

train: env
	$(BIN)/accelerate launch launch.py recipes/breast.yaml

test: env-dev
	$(BIN)/python -m pytest tests --numprocesses logical --maxprocesses 4 --dist loadfile

# Tests that take minutes: every strategy, every way of resuming, killed processes.
test-long: env-dev
	$(BIN)/python -m pytest tests -m long

# Changed recipes, overrides, grids, models and runs, each accepted or refused with a message; SECONDS=60, SEED=7.
fuzz: env-dev
	$(BIN)/python tests/fuzz.py $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED))

# Two machines, as network namespaces: equal losses, a cut cable, resuming. Needs root.
two-hosts: env-dev
	PYTHON=$(CURDIR)/$(BIN)/python bash tests/framework/distributed/two_hosts.sh

# Installs wheels of sonoscribe and examples/plugin-package into a new environment, and trains there.
package:
	PYTHON=$(PYTHON) ACCELERATOR=$(ACCELERATOR) bash tests/outside_package.sh

# Checks and changes nothing; .pre-commit-config.yaml runs the same.
lint: env-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: env-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# All benchmarks, or NAME=decoding; QUICK=1 at sizes of seconds. `make docs` then shows the figures.
bench: env-dev
	$(BIN)/python -m benchmarks $(NAME) $(if $(QUICK),--quick)

# Files that are generated from the code and committed.
docs: env
	$(BIN)/python launch.py schema > recipes/.schema.part && mv recipes/.schema.part recipes/sonoscribe.schema.json
	$(BIN)/python docs/make_reference.py
	$(BIN)/python docs/make_tables.py
	$(BIN)/python -m benchmarks.page
	$(BIN)/python -m benchmarks.phantom_sheet

site: env-dev
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) .cache build site *.egg-info

# Every target works on a fresh machine: the first one makes the virtual environment.
# Variables: PYTHON (which Python makes it), VENV (where), TORCH (a pip requirement), JOBS (test processes).
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0; python_version >= '3.10'
JOBS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP_INDEX = $$($(BIN)/python -m pip config get global.index-url 2>/dev/null || echo https://pypi.org/simple)
INDEX = $${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-$(PIP_INDEX)}}

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint format docs check clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(STAMP)  ## make .venv with all that demo, test, lint and docs need

# A torch that is there is kept. uv runs from this folder, where pyproject.toml overrides the host's setuptools pin; it
# does not read pip's configuration, so pip's index and the system's certificates are handed to it.
$(STAMP): setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "uv>=0.5"
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install "$(TORCH)"
	UV_NATIVE_TLS=1 UV_DEFAULT_INDEX="$(INDEX)" $(BIN)/uv pip install --python $(BIN)/python -e ".[mujoco,test,docs]"
	touch $@

demo: $(STAMP)  ## train QGPO and DPPO on built-in tasks, print the table, write pictures to demo/
	$(BIN)/ding-ebm demo

test: $(STAMP)  ## the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

test-slow: $(STAMP)  ## the slow tests, too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m "not gpu"

lint: $(STAMP)  ## style, types, and README's tables against docs/results
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/readme_tables.py --check

format: $(STAMP)  ## rewrite the sources in the house style, and README's tables
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python docs/readme_tables.py

docs: $(STAMP)  ## the site, in docs/_build/html
	$(BIN)/sphinx-build -W --keep-going -q docs docs/_build/html

check: lint test docs  ## all that a change must pass

clean:  ## remove the virtual environment, caches and built files
	rm -rf $(VENV) build dist *.egg-info docs/_build .pytest_cache .mypy_cache .ruff_cache
	find ding_ebm dizoo_configs tests benchmarks docs -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

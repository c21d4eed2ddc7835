# A new machine needs Python 3.11, 3.12 or 3.13, and make. Everything else is installed into .venv, once.
# Another Python than the first one of the PATH: `make test PYTHON=python3.12`. A .venv of another version is then made anew.
PYTHON ?= python3
BIN := .venv/bin
INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt

ifneq ($(origin PYTHON),file)
# A shim of pyenv does not run a version that is installed but not chosen; that version's own program does.
PYENV := $(wildcard $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions/*/bin/$(PYTHON))
INTERPRETER := $(if $(shell $(PYTHON) -c 'print(1)' 2>/dev/null),$(PYTHON),$(or $(lastword $(PYENV)),$(PYTHON)))
VERSION := -c 'import sys; print(sys.version_info[:2])'
ifneq ($(shell $(BIN)/python $(VERSION) 2>/dev/null),$(shell $(INTERPRETER) $(VERSION)))
REMADE := remade
endif
endif

.PHONY: run test test-slow lint remade

run: .venv/installed
	$(BIN)/python -m vit_jax.main --config configs/digits.py

# The tests start many processes. Each would compile the libraries that it imports where bytecode is not kept.
test test-slow: export PYTHONDONTWRITEBYTECODE =
test: lint
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow" --durations=10

test-slow: .venv/installed-parity
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m slow --durations=10

lint: .venv/installed-dev
	$(BIN)/ruff format --check --quiet
	$(BIN)/ruff check --quiet
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

.venv/installed: pyproject.toml constraints.txt $(REMADE)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(INSTALL) --editable .
	@touch $@

remade:
	$(INTERPRETER) -m venv --clear .venv

.venv/installed-dev: .venv/installed
	$(INSTALL) --editable ".[dev]"
	@touch $@

# By pip, which takes a build without CUDA where there is one; the constraints do not name it.
.venv/installed-parity: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(INSTALL) --editable ".[dev,parity,tpu,wandb,mlflow]"
	@touch $@

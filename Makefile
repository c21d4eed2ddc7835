# A new machine needs Python >= 3.11 and make. Everything else is installed into .venv, once.
PYTHON ?= python3
BIN := .venv/bin
INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt

.PHONY: run test test-slow lint

run: .venv/installed
	$(BIN)/python -m vit_jax.main --config configs/digits.py

test: lint
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

test-slow: .venv/installed-parity
	$(BIN)/python -m pytest -q -n 2 -m slow

lint: .venv/installed-dev
	$(BIN)/ruff format --check --quiet
	$(BIN)/ruff check --quiet
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(INSTALL) --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	$(INSTALL) --editable ".[dev]"
	@touch $@

# By pip, which takes a build without CUDA where there is one; the constraints do not name it.
.venv/installed-parity: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(INSTALL) --editable ".[dev,parity,tpu]"
	@touch $@

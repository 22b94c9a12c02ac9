# The targets CI and people call. Everything happens in .venv, made on first use.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
CONFIG ?= configs/dev.toml
STAMP  := $(VENV)/.installed

.PHONY: setup build run check test reference bench soak clean

setup: $(STAMP) build

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("pushd needs Python 3.11 to 3.13, found " + sys.version.split()[0] + "; set PYTHON=" if not (3, 11) <= sys.version_info < (3, 14) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(STAMP)

# Rebuilt when the extension's sources are newer; a no-op otherwise.
build: $(STAMP)
	$(BIN)/python setup.py --quiet build_ext --inplace

run: setup
	$(BIN)/python -m pushd --config $(CONFIG)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: setup
	$(BIN)/python -m pytest --cov --cov-report=term --cov-fail-under=90

clean:
	rm -rf build $(VENV) pushd/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis

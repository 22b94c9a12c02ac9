# The targets CI and people call. Everything happens in .venv, made on first use.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
CONFIG ?= configs/dev.toml
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
STAMP  := $(VENV)/.installed
EXTENSION := $(VENV)/.built
EXTENSION_SOURCES := setup.py $(shell find pushd -name "*.pyx" -o -name "*.pxd")

.PHONY: setup lock run check test reference bench soak abuse load clean
.DELETE_ON_ERROR:

setup: $(STAMP) $(EXTENSION)

$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "pushd needs Python 3.11 to 3.13, found " + sys.version.split()[0] + "; set PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --require-hashes --only-binary :all: -r requirements.lock
	$(INSTALL) --no-deps --no-build-isolation -e .
	touch $@

# requirements.lock anew: the newest of everything that pyproject.toml allows, for all Pythons it allows.
lock: setup
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' -o requirements.lock pyproject.toml

$(EXTENSION): $(STAMP) $(EXTENSION_SOURCES)
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

run: setup
	$(BIN)/python -m pushd --config $(CONFIG)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: setup
	tests/install-servers.sh
	$(BIN)/python -m pytest --cov --cov-report=term --cov-fail-under=90

# Every benchmark, about fifteen minutes (QUICK=1: three), or those named: make bench BENCH="fanout publish".
# For "peers" the servers it compares with are installed first, as far as we may; so is what "stores" measures MongoDB with.
bench: setup
	$(if $(if $(BENCH),$(filter peers,$(BENCH)),peers),PYTHON="$(PYTHON)" bench/install-peers.sh)
	$(if $(filter stores,$(BENCH)),bench/install-mongo-java.sh)
	$(BIN)/python -m bench $(if $(QUICK),--quick) $(BENCH)

# Ten minutes of mixed load on one daemon, all of it accounted for (MINUTES=60: an hour).
soak: setup
	$(BIN)/python -m bench.soak $(if $(MINUTES),--minutes $(MINUTES))

# Floods of all kinds, about five minutes: what a bystander notices of each, and the daemon's memory.
abuse: setup
	$(BIN)/python -m bench.abuse

# Against a daemon that `make run` started in another terminal.
load: setup
	$(BIN)/python bench/load.py -c 1000 -n 10000 ws://localhost:8801/ws

# configs/reference.toml is made from the schema in pushd/config/schema.py.
reference: setup
	$(BIN)/python -m pushd.config.toml > configs/reference.toml

clean:
	find pushd -name "*.so" -delete
	rm -rf build $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

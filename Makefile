# Everything a newcomer types. Needs python3 (3.11 or newer) with pip, and make; fetches the rest.
PYTHON ?= python3
UV := .tools/bin/uv
BIN := .venv/bin

.PHONY: env demo docs test test-cluster lint bench bench-quick scale faults cluster-up cluster-down lock clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   a real sweep on embedded data, with its table (about 3 minutes the first time)"
	@echo "make test   all tests but those of make test-cluster"
	@echo "make test-cluster  tests on a cluster with all that a team has beside it, and each row of the fault table once"
	@echo "make lint   ruff, mypy, import-linter"
	@echo "make bench  speed against a plain loop, Ray Tune and the machine itself; bench-quick: the main ones in a minute"
	@echo "make faults what happens to a sweep when something dies: eleven faults, five times each (an hour; root)"
	@echo "make scale  the driver against 1,000 simulated packs on 500 simulated workers"
	@echo "make cluster-up    a team's cluster on this machine: Ray nodes, PostgreSQL, an S3 store, MLflow; cluster-down"
	@echo "make docs   what programs make of the documentation: the reference, the tutorial's outputs, images (chromium)"
	@echo "make env    only the environment, in .venv"

env: .venv/.done

# Not $(PYTHON) -m pip install torch: which build pip prefers differs from machine to machine; uv follows the lock.
# Compiled here once: every command, and every worker it starts, imports torch, Ray and MLflow.
.venv/.done: requirements.lock pyproject.toml $(UV)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv
	$(UV) pip sync --quiet --require-hashes --compile-bytecode --python $(BIN)/python requirements.lock
	$(UV) pip install --quiet --no-deps --no-build-isolation --python $(BIN)/python -e .
	touch $@

$(UV):
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --target .tools uv

demo: env
	$(BIN)/lt-sweep run sweeps/specs/demo.yaml --fresh

# tests/cluster and tests/faults, each row of its table once, take about twenty minutes more, on real Ray nodes, an S3
# store, MLflow, and PostgreSQL, which has to be there. Two rows want root, for small disks; one test wants chromium.
test: env
	$(BIN)/pytest --ignore=tests/cluster --ignore=tests/faults

test-cluster: env
	$(BIN)/pytest tests/cluster tests/faults

docs: env
	$(BIN)/python tools/documentation

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Nothing else should run on the machine meanwhile. Where a CUDA device is at hand, it is measured there.
bench: env
	$(BIN)/python benchmarks $(BENCH)

bench-quick: env
	$(BIN)/python benchmarks --quick $(BENCH)

faults: env
	$(BIN)/python tools/faults $(FAULTS)

scale: env
	$(BIN)/python benchmarks/scale.py $(SCALE)

cluster-up: env
	$(BIN)/python infra/local/cluster.py up

cluster-down: env
	$(BIN)/python infra/local/cluster.py down

# No --index: addresses of a registry have no place in the lock.
lock: $(UV)
	$(UV) pip compile --quiet pyproject.toml --group dev --python-version 3.11 --universal --generate-hashes \
	  --no-header --no-emit-index-url --output-file requirements.lock

clean:
	rm -rf .venv .tools .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# The commands of this repository. Needs python3 (3.11 or newer) with pip, and make; the rest is downloaded.
PYTHON ?= python3
UV := .tools/bin/uv
BIN := .venv/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
UNIT := tests --ignore=tests/cluster --ignore=tests/faults --ignore=tests/documentation --ignore=tests/benchmarks

.PHONY: help env demo docs site test test-quick test-docs test-cluster test-install lint bench bench-quick scale coverage faults damage cluster-up \
  cluster-down lock clean
.DEFAULT_GOAL := help

help:
	@echo "make demo          a small sweep on bundled data, with its result table (3 minutes the first time)"
	@echo "make test          unit tests (14 minutes on two cores)"
	@echo "make test-quick    unit tests without the slow ones (a few minutes)"
	@echo "make test-docs     runs the commands of README and docs and the benchmarks once, and builds the site"
	@echo "make test-cluster  tests on a local cluster, and each fault once (20 minutes)"
	@echo "make test-install  installs the wheel into empty environments, newest and oldest versions, and runs the demo"
	@echo "make lint          ruff, mypy, import contracts, language"
	@echo "make bench         speed against a plain loop, Ray Tune and the hardware; bench-quick takes a minute"
	@echo "make faults        eleven faults, five times each, during a sweep (one hour, as root)"
	@echo "make damage        2,200 damaged files of finished sweeps: no wrong number, and only what is damaged is lost"
	@echo "make scale         the driver with 1,000 simulated packs on 500 simulated workers"
	@echo "make coverage      simulates how often 95% intervals contain the true value (five minutes on an idle core)"
	@echo "make cluster-up    a team's cluster on this machine: Ray, PostgreSQL, S3, MLflow; cluster-down stops it"
	@echo "make docs          regenerates the reference, the tutorial's outputs and the images (needs chromium)"
	@echo "make site          the documentation as a website: open site/index.html (one minute; needs no network)"
	@echo "make env           the development environment in .venv"

env: .venv/.done

# uv installs the locked build of torch; which build pip prefers depends on the machine.
.venv/.done: requirements.lock pyproject.toml $(UV)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv
	$(UV) pip sync --quiet --require-hashes --compile-bytecode --python $(BIN)/python requirements.lock
	$(UV) pip install --quiet --no-deps --no-build-isolation --python $(BIN)/python -e .
	touch $@

$(UV):
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --target .tools uv

demo: env
	$(BIN)/lt-sweep demo

test: env
	$(PYTEST) $(UNIT)

test-quick: env
	$(PYTEST) -m "not slow" $(UNIT)

test-docs: env
	$(PYTEST) tests/documentation tests/benchmarks

# Real Ray nodes, an S3 store, MLflow and PostgreSQL. Two faults need root for small file systems; one test needs chromium.
test-cluster: env
	$(BIN)/pytest tests/cluster tests/faults

test-install: env
	UV=$(abspath $(UV)) $(BIN)/python tools/check_install.py $(INSTALL)

docs: env
	$(BIN)/python tools/documentation

# Material announces MkDocs 2 at every build; the variable silences it.
site: env
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file tools/documentation/mkdocs.yml

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/check_language.py

# Needs a quiet machine. Measures a CUDA device where there is one.
bench: env
	$(BIN)/python benchmarks $(BENCH)

bench-quick: env
	$(BIN)/python benchmarks --quick $(BENCH)

faults: env
	$(BIN)/python tools/faults $(FAULTS)

damage: env
	$(BIN)/python tools/damage.py $(DAMAGE)

scale: env
	$(BIN)/python benchmarks/scale.py $(SCALE)

coverage: env
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/interval_coverage.py $(COVERAGE)

cluster-up: env
	$(BIN)/python infra/local/cluster.py up

cluster-down: env
	$(BIN)/python infra/local/cluster.py down

# The newest and the oldest allowed versions. --no-emit-index-url: a lock file names no registry.
lock: $(UV)
	$(UV) pip compile --quiet pyproject.toml --extra all --group dev --python-version 3.11 --universal --generate-hashes \
	  --no-header --no-emit-index-url --output-file requirements.lock
	$(UV) pip compile --quiet pyproject.toml --extra all --python-version 3.11 --resolution lowest-direct \
	  --no-header --no-emit-index-url --no-annotate --output-file requirements-oldest.lock

clean:
	rm -rf .venv .tools site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

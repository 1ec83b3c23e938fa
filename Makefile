# The two commands of the README: `make demo` and `make test`. Each sets up .venv by itself;
# nothing outside this checkout is written (caches and temporary files go to .venv and build).
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

export TMPDIR := $(CURDIR)/build/tmp
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Where no registry can be reached but the packages are there: make gpu PYTHON=python3 SETUP=no
SETUP ?= yes
ifneq ($(SETUP),no)
export PATH := $(CURDIR)/$(BIN):$(PATH)
endif

DEMO ?= demo
DEMO_SAMPLES ?= 600
DEMO_EPOCHS ?= 6
DATA := $(DEMO)/synth-$(DEMO_SAMPLES)
RUN := $(DEMO)/run-$(DEMO_SAMPLES)x$(DEMO_EPOCHS)

.PHONY: help setup demo test lint types unit test-slow docs gpu clean

help:
	@echo 'make setup  set up .venv, where the commands are: . .venv/bin/activate'
	@echo 'make demo   set up .venv, make a small data set, build shards, train, evaluate'
	@echo 'make test   set up .venv, lint, type-check, test'
	@echo 'make test-slow  the tests that take long; make test skips them by name'
	@echo 'make gpu    on a machine with an NVIDIA GPU: test and measure everything, in 9 minutes (docs/gpu.md)'
	@echo 'make clean  remove build/ and demo/ (not .venv)'

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@mkdir -p '$(TMPDIR)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-cache-dir -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-cache-dir --no-deps --no-build-isolation --editable .
	$(BIN)/python -m shardify.precompile
	@touch $(READY)

# Safe to run again: the zip and the shards are kept, the run goes on or is reported as it ended.
demo: setup
	@mkdir -p '$(TMPDIR)' '$(DEMO)'
	test -f $(DATA).zip || $(BIN)/shardify synth $(DATA).zip --samples $(DEMO_SAMPLES)
	$(BIN)/shardify build $(DATA).zip $(DATA) --val 0.1 --group-by bg
	$(BIN)/train run --shards $(DATA) --res 64 --epochs $(DEMO_EPOCHS) --out $(RUN) --resume
	$(BIN)/train eval $(RUN) --shards $(DATA) --res 64
	@echo 'panel: $(RUN)/panels/'`ls $(RUN)/panels | tail -n 1`

test: lint types unit

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup
	$(BIN)/mypy

# Many tests kill, stop and time real processes. What failed on a busy machine is shown, and run
# once more by itself: a failure that comes again counts.
AGAIN := { echo 'make: what failed above, once more by itself:'; \
	OMP_NUM_THREADS=1 $(BIN)/pytest --last-failed --last-failed-no-failures none; }

# Two processes of one thread each: torch on two threads each would fight for two cores.
unit: setup
	@mkdir -p '$(TMPDIR)'
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder || $(AGAIN)

# Too long for every test run, a tenth of the GPU suite on this CPU among them.
test-slow: setup
	@mkdir -p '$(TMPDIR)'
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --slow -m slow

GPU_OUT ?= build/gpu

gpu: $(if $(filter no,$(SETUP)),,setup)
	@mkdir -p '$(TMPDIR)'
	$(if $(filter no,$(SETUP)),$(PYTHON),$(BIN)/python) -m train bench --suite --out $(GPU_OUT)

docs: setup
	$(BIN)/python docs/make_commands.py
	$(BIN)/python docs/make_schema.py

clean:
	rm -rf build $(DEMO)

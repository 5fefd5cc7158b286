# `make demo` and `make test` need nothing but Python: they make .venv first. `make help` lists the targets.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
WORKERS ?= logical
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal --durations 10

.PHONY: help demo test test-all lint type clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1: \2/p' Makefile

demo: $(INSTALLED)  ## train, fuse and compare a small model
	$(BIN)/kdna demo

test: $(INSTALLED)  ## run the fast tests, one process per core (make test WORKERS=1 for one)
	$(PYTEST)

test-all: $(INSTALLED)  ## run every test: the slow ones too, and those of a GPU where there is one
	$(PYTEST) -m "not gpu"
	$(PYTEST) -m gpu

lint: $(INSTALLED)  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(INSTALLED)  ## check types
	$(BIN)/pyright

clean:  ## remove caches and builds; .venv, runs/ and demo/ stay
	rm -rf build dist .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "$(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo missing); kerneldna needs Python 3.10 or newer." \
	    "Name one that is: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing kerneldna, PyTorch and the tools into .venv: a few minutes, once."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

# make demo, make test: each makes .venv and installs what it needs; a second call starts at once.

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    train and compare on made-up scenes: no data, no downloads (ARGS=--long)"
	@echo "make test    run the tests (ARGS=tests/test_model.py)"
	@echo "make lint    ruff and pyright"
	@echo "make docs    build the documentation site into site/"
	@echo "make clean   remove .venv and caches"
	@echo "With another Python than $(PYTHON): make PYTHON=python3.12 demo"

demo: $(STAMP)
	$(BIN)/dynamicvit demo $(ARGS)

# A worker that falls over with a runtime's threads says nothing of its test: that runs again, alone.
# So does a test that fails, to say why: rewriting the asserts of all tests for it takes long.
test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist worksteal --assert=plain $(ARGS) || \
		$(BIN)/python -m pytest --last-failed --last-failed-no-failures none $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Warnings are errors: a link that leads nowhere, a page that the navigation lacks.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) site .pytest_cache .ruff_cache .hypothesis dist build
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last: an interrupted installation is taken up again.
$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || \
		{ echo "$(PYTHON) not found: install Python 3.10 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed, but $(PYTHON) is `$(PYTHON) -V 2>&1`;" \
		"name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || \
		if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then $(PYTHON) -m venv --clear $(VENV); \
		else $(PYTHON) -m venv --clear --without-pip $(VENV) && $(BIN)/python tools/get_pip.py; fi
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "Installing torch, timm and the rest: about two minutes, this once."
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

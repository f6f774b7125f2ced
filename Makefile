# make compare   install, and compare posteriors with batch normalization on digits
# make test      install, and run the tests (make test-all: the slow ones too)
# make check     what CI runs: tests, lint, types, docs and the code in them, examples

PYTHON ?= python3
PYTHON_LATEST ?= python3.12
VENV ?= .venv
LATEST ?= .venv-latest
RESULTS ?= results/compare
BIN := $(VENV)/bin
export MPLBACKEND = agg

.PHONY: compare test test-all test-latest lint types docs docs-code examples benchmarks check format clean

compare: $(VENV)/.installed
	$(BIN)/pyronorm compare --output $(RESULTS) --force

test: $(VENV)/.installed
	$(BIN)/python -m pytest -m "not slow"

test-all: $(VENV)/.installed
	$(BIN)/python -m pytest

test-latest: $(LATEST)/.installed
	$(LATEST)/bin/python -m pytest -m "not slow"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed-dev
	$(BIN)/mypy

docs: $(VENV)/.installed-dev
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

# The code blocks of README and docs (conftest.py says how), and doctests.
docs-code: $(VENV)/.installed
	$(BIN)/python -m pytest --doctest-modules README.md docs benchmarks/README.md pyronorm

examples: $(VENV)/.installed
	for example in examples/*.py; do echo "$$example"; $(BIN)/python "$$example" || exit 1; done

benchmarks: $(VENV)/.installed
	for benchmark in step predict bank draws propagation; do $(BIN)/python -m benchmarks.$$benchmark || exit 1; done

check: test lint types docs docs-code examples

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(LATEST) docs/_build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[test]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

# The newest versions of everything, ArviZ 1.x among them.
$(LATEST)/.installed: pyproject.toml
	$(PYTHON_LATEST) -m venv $(LATEST)
	$(LATEST)/bin/python -m pip install --quiet --upgrade -e ".[test]"
	touch $@

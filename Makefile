# make compare   install, and compare posteriors with batch normalization on digits
# make test      install, and run the tests (make test-all: the slow ones too)
# make test-lowest, test-torch211, test-latest   the tests in other environments, described below
# make gpu       the check on a GPU (without one, at tiny size)
# make check     what CI runs: tests, lint, types, docs and the code in them, examples

PYTHON ?= python3
PYTHON_LOWEST ?= python3.11
PYTHON_LATEST ?= python3.12
VENV ?= .venv
LOWEST ?= .venv-lowest
TORCH211 ?= .venv-torch211
LATEST ?= .venv-latest
RESULTS ?= results/compare
# Jobs of a study and workers of the tests, one thread each. The third worker is for machines with two
# cores that others load too: tests then take less than twice as long.
JOBS ?= 2
WORKERS ?= 3
BIN := $(VENV)/bin
PYTEST := -m pytest -n $(WORKERS)
export MPLBACKEND = agg

# Builds of torch without CUDA; install-torch below says what to do where pip finds none.
TORCH_LOWEST ?= 2.6.0+cpu
TORCH_211 ?= 2.11.0+cpu
TORCH_LATEST ?=  # the newest that pip finds

.PHONY: compare test test-all test-lowest test-torch211 test-latest lint types docs docs-code examples benchmarks gpu check format clean

compare: $(VENV)/.installed
	$(BIN)/pyronorm compare --output $(RESULTS) --jobs $(JOBS) $(OPTIONS)

# One thread for each of the processes that share the tests.
test test-all test-lowest test-torch211 test-latest: export OMP_NUM_THREADS = 1

test: $(VENV)/.installed
	$(BIN)/python $(PYTEST) -m "not slow"

test-all: $(VENV)/.installed
	$(BIN)/python $(PYTEST)

# Old versions warn about what has come after them; all other warnings are errors here too.
test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python $(PYTEST) -m "not slow" $(addprefix -W ignore::,DeprecationWarning \
		PendingDeprecationWarning FutureWarning)

test-torch211: $(TORCH211)/.installed
	$(TORCH211)/bin/python $(PYTEST) -m "not slow"

test-latest: $(LATEST)/.installed
	$(LATEST)/bin/python $(PYTEST) -m "not slow"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed-dev
	$(BIN)/mypy

docs: $(VENV)/.installed-dev
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

# The code blocks of README and docs (conftest.py says how), doctests, and the programs of a page in processes of their own.
docs-code: $(VENV)/.installed
	$(BIN)/python -m pytest --doctest-modules --ignore docs/_ext README.md docs benchmarks/README.md pyronorm tests/test_trained_network.py

examples: $(VENV)/.installed
	for example in examples/*.py; do echo "$$example"; $(BIN)/python "$$example" || exit 1; done

benchmarks: $(VENV)/.installed
	for benchmark in step predict bank draws propagation nuts; do $(BIN)/python -m benchmarks.$$benchmark || exit 1; done

# The check on a GPU; without one at tiny size. OPTIONS are those of python -m benchmarks.gpu.
gpu: $(VENV)/.installed
	$(BIN)/python -m benchmarks.gpu $(OPTIONS)

check: test lint types docs docs-code examples

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(LOWEST) $(TORCH211) $(LATEST) docs/_build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[test]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

# $(call install-torch,environment,version,variable)
define install-torch
	@$(1)/bin/python -m pip install --quiet "torch==$(2)" || { printf '%s\n' "" \
		"No torch $(2) for this machine in the places where pip looks. Name one that has it in" \
		"PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS, or take another build, such as the one of the package" \
		"index (on Linux with CUDA, several GB): make $(3)=$(firstword $(subst +, ,$(2))) ..."; exit 1; }
endef

# The lowest versions that pyproject.toml allows.
$(LOWEST)/.installed: pyproject.toml constraints-lowest.txt
	$(PYTHON_LOWEST) -m venv $(LOWEST)
	$(call install-torch,$(LOWEST),$(TORCH_LOWEST),TORCH_LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet -c constraints-lowest.txt -e ".[test]"
	touch $@

# torch 2.11 with the newest versions of the rest.
$(TORCH211)/.installed: pyproject.toml
	$(PYTHON_LATEST) -m venv $(TORCH211)
	$(call install-torch,$(TORCH211),$(TORCH_211),TORCH_211)
	$(TORCH211)/bin/python -m pip install --quiet --upgrade "torch==$(TORCH_211)" -e ".[test]"
	touch $@

# The newest versions of everything, ArviZ 1.x among them.
$(LATEST)/.installed: pyproject.toml
	$(PYTHON_LATEST) -m venv $(LATEST)
	$(LATEST)/bin/python -m pip install --quiet --upgrade $(TORCH_LATEST:%="torch==%") -e ".[test]"
	touch $@

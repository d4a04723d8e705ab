# Each target does all its own set-up: a virtual environment here, then the install.
# `make test PYTHON=python3.13` uses another Python, in an environment of its own.

PYTHON ?= $(firstword $(foreach name,python3.11 python3,$(shell command -v $(name))))
VENV ?= $(if $(filter command line,$(origin PYTHON)),.venv-$(notdir $(PYTHON)),.venv)
WORKDIR ?= runs/digits
BIN := $(VENV)/bin

.PHONY: help quickstart test lint format docs benchmark clean

help:
	@echo "make quickstart   train all methods on the digits, tables and figures in $(WORKDIR)"
	@echo "make test         format, lint, types, docstring examples and tests"
	@echo "make format       put the code in the project's format"
	@echo "make docs         build the documentation in docs/_build"
	@echo "make benchmark    measure the selection against sorting"

# Installed again when pyproject.toml changes; one mark for each set of extras.
$(VENV)/.installed-%: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed; none was found."; exit 1; }
	@echo "== Setting up $(VENV) with $(PYTHON)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "== Installing sparsejax[$(subst +,$(comma),$*)]: a few minutes the first time"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e ".[$(subst +,$(comma),$*)]"
	@touch $@

comma := ,

quickstart: $(VENV)/.installed-experiments
	@echo "== Training dense, static, SET, RigL, GMP and GraNet on scikit-learn's digits"
	@$(BIN)/python -m experiments.digits --config=experiments/configs/digits.py --workdir=$(WORKDIR)

test: lint
	@echo "== Running the tests and the docstring examples"
	@# A file is one worker's: what its tests share is made once. In their order, as the
	@# files with the fewest tests, sent last otherwise, are the slowest.
	@$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -q

lint: $(VENV)/.installed-experiments+test
	@echo "== Checking format, lint and types"
	@$(BIN)/ruff format --check --quiet . || { echo "Run 'make format'."; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy

format: $(VENV)/.installed-experiments+test
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

docs: $(VENV)/.installed-docs
	@echo "== Building the documentation"
	@$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build

benchmark: $(VENV)/.installed-experiments
	@$(BIN)/python -m benchmarks.selection

clean:
	rm -rf .venv .venv-* docs/_build

# `make toy` and `make test` set themselves up in .venv; they need Python 3.11 or later and nothing else.
# Further arguments: make toy ARGS="loop.num_rounds=1", make test ARGS="-k metrics".

PYTHON ?= $(shell for name in python3.11 python3 python; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
BIN := .venv/bin
ARGS ?=

.PHONY: help setup setup-parity toy test lint format bench

help:
	@echo "make toy       set up, then train the embedded generator against the embedded judge (2 CPU cores will do)"
	@echo "make test      set up, then run the tests"
	@echo "make lint      set up, then check style, types, docstrings and spelling"
	@echo "make format    set up, then rewrite the code in the house style"
	@echo "make bench     set up, then run the benchmarks"

setup:
	@test -n "$(PYTHON)" || { echo "setup: no Python 3.11 or later found; name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) scripts/setup_env.py .venv --editable ".[dev]"

setup-parity: setup
	@$(PYTHON) scripts/setup_env.py --above .venv .venv-parity --requirement tests/parity/requirements.txt

toy: setup
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		joint_train.py configs/toy.yaml $(ARGS)

test: setup setup-parity
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pydoclint --quiet --config pyproject.toml reward_model generator_loop scripts joint_train.py
	$(BIN)/codespell

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	@for script in $$(grep -l '^if __name__' scripts/bench/*.py); do echo "$$script"; $(BIN)/python $$script $(ARGS) || exit 1; done

# `make demo` and `make test` are all a newcomer needs: each sets up .venv by itself, once.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format clean distclean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile

setup:  ## make .venv: pinned requirements, mmcv's operators, mmaction2 repaired, the suite itself
	@command -v $(PYTHON) >/dev/null || { echo "setup: no $(PYTHON) found; install Python 3.11 or 3.12, or call make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) tools/setup_env.py

demo: setup  ## train RetinaNet on digits, print AP and AP50, draw work_dirs/demo/predictions.png (about 25 minutes)
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash tools/demo.sh

lint: setup  ## ruff and mypy
	@echo "lint: ruff check" && $(BIN)/ruff check
	@echo "lint: ruff format" && $(BIN)/ruff format --check
	@echo "lint: mypy" && $(BIN)/mypy

format: setup  ## let ruff rewrite what it can
	@$(BIN)/ruff check --fix && $(BIN)/ruff format

test: lint  ## lint, then all tests (two processes of one thread each)
	@echo "test: pytest" && OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --durations=15

clean:  ## remove caches and build leftovers, keep .venv and work_dirs
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	@find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## remove .venv, too (mmcv's built wheel stays in the cache)
	@rm -rf .venv

# `make help` lists what can be done. Variables: PYTHON=python3.12, EXPERIMENT=two_rooms, SEEDS=[0,1,2], ARGS="...".
PYTHON ?= python3
VENV ?= .venv
EXPERIMENT ?= two_rooms
SEEDS ?= [0,1,2]
PORT ?= 5000
ARGS ?=
BIN := $(VENV)/bin
PARALLEL := -n logical --maxprocesses 8 --dist loadfile
STAMP := $(VENV)/.installed
DATABASE = $(or $(JEPA_ROOT),$(CURDIR))/mlflow.db

.DEFAULT_GOAL := help
.PHONY: help setup run quick test results ui lint coverage clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## Make .venv with everything the template needs (once)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v < (3, 14) or sys.exit("Python 3.11, 3.12 or 3.13 is needed, this is %d.%d: make setup PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $@

run: setup ## Collect, pretrain, plan, measure: the whole of Two-Rooms (<= 45 minutes on 2 cores)
	$(BIN)/python -m lightning_jepa.pipeline experiment=two_rooms $(ARGS)
	$(BIN)/python -m lightning_jepa.evaluation.tables

quick: setup ## The same chain in 5 to 8 minutes; its success rate means nothing yet
	$(BIN)/python -m lightning_jepa.pipeline experiment=two_rooms_quick $(ARGS)

test: setup ## Run the tests, on as many cores as there are (<= 15 minutes on 2)
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

results: setup ## Repeat EXPERIMENT with all SEEDS and write results/EXPERIMENT.json
	$(BIN)/python -m lightning_jepa.pipeline experiment=$(EXPERIMENT) 'seeds=$(SEEDS)' $(ARGS)
	$(BIN)/python -m lightning_jepa.evaluation.tables

ui: setup ## Open the MLflow page on http://127.0.0.1:5000 (PORT=...)
	MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
	$(BIN)/mlflow server --backend-store-uri sqlite:///$(DATABASE) --host 127.0.0.1 --port $(PORT) --workers 1

lint: setup ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

coverage: setup ## Run the tests and show which lines they miss
	$(BIN)/python -m pytest $(PARALLEL) --cov --cov-report=term-missing --cov-fail-under=90 $(ARGS)

clean: ## Remove caches and build outputs (data, runs and the MLflow store stay)
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage
	find lightning_jepa data_pipelines tests -name __pycache__ -type d -prune -exec rm -rf {} +

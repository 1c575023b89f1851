# Carina. Everything runs in .venv; Python 3.11 or newer and make are all it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-services test-long lint bench clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) -e .
	@touch $@

$(VENV)/.developer: $(VENV)/.installed
	$(PIP) -e '.[dev,train,cluster,services,pacs,research,serve]'
	@touch $@

demo: $(VENV)/.installed  ## Read 24 synthetic radiographs end to end and write a report
	$(BIN)/carina demo

lint: $(VENV)/.developer  ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint  ## Lint, types and the test suite on SQLite (under 15 minutes on 2 cores)
	$(BIN)/pytest -q -m "not slow and not services and not gpu" -n 3 --dist loadgroup --ignore tests/trainer
	$(BIN)/pytest -q -m "not slow and not services and not gpu" -n 2 --dist loadgroup tests/trainer

test-services: $(VENV)/.developer  ## Tests that need a real database, broker or DICOM archive
	tests/install_peers.sh
	$(BIN)/pytest -q -m "services and not slow" || [ $$? -eq 5 ]

test-long: $(VENV)/.developer  ## The long versions: more kills, more mutated files, training to the end
	$(BIN)/pytest -q -m "slow and not gpu" --timeout 3600

bench: $(VENV)/.developer  ## The benchmarks behind every quoted figure
	$(BIN)/python benchmarks/scan.py
	$(BIN)/python benchmarks/ledger.py
	$(BIN)/python benchmarks/ledger.py --postgresql
	$(BIN)/python benchmarks/views.py
	$(BIN)/python benchmarks/views.py --postgresql
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/workers.py
	$(BIN)/python benchmarks/bootstrap.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/engines.py
	$(BIN)/python benchmarks/throughput.py

clean:  ## Remove what the other targets made
	rm -rf $(VENV) carina-demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

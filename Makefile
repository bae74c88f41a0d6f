.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
ALL := .venv/.installed-all
WORKERS ?= 2

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Create .venv and install everything, pinned by constraints.txt

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("quantfl needs Python 3.11 or newer; this is " + sys.version.split()[0] + "; set PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,ray,slurm,orbit]'
	touch $@

$(ALL): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,ray,slurm,orbit,onnx,edge]'
	touch $@

demo: $(STAMP) ## Train on built-in synthetic images, compare precisions: about two minutes
	@$(BIN)/python -m fl.train experiment=demo hydra.run.dir='$${new_folder:outputs/demo}' | tee .venv/demo.log
	@$(BIN)/python compare_quantizations.py "$$(sed -n 's/^Model: *//p' .venv/demo.log)"

eurosat: $(STAMP) ## The same on real EuroSAT with the default configuration (EUROSAT_ZIP, or it is downloaded)
	@$(BIN)/python -m fl.train hydra.run.dir='$${new_folder:outputs/eurosat}' | tee .venv/eurosat.log
	@$(BIN)/python compare_quantizations.py "$$(sed -n 's/^Model: *//p' .venv/eurosat.log)"

test: $(ALL) lint ## Lint, types, tests (those on real images need EUROSAT_ZIP)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) -m 'not long'

test-long: $(ALL) ## The tests that take long: the whole demo, more ways to stop, kill and resume a run
	$(BIN)/python -m pytest --numprocesses $(WORKERS) -m long

test-cluster: $(STAMP) ## submit_job.sh and SLURM sweeps on a real SLURM, started here where it may be (else says why not)
	tests/cluster/run.sh $(BIN)/python

bench: $(STAMP) ## Measure start-up and the cost of a round against plain loops (EUROSAT_ZIP; about 15 minutes)
	@$(BIN)/python benchmarks/startup.py
	@$(BIN)/python benchmarks/round.py
	@$(BIN)/python benchmarks/reference_flower_ray.py
	@$(BIN)/python benchmarks/codec_speed.py
	@$(BIN)/python benchmarks/training_speed.py
	@$(BIN)/python benchmarks/layer_speed.py

results: $(STAMP) ## Fill the grids on real EuroSAT: codecs, then precisions (EUROSAT_ZIP; a day, can be stopped)
	@$(BIN)/python benchmarks/codecs.py
	@$(BIN)/python benchmarks/precisions.py

tables: $(STAMP) ## Make every table and headline of README.md and docs/ again from the stored figures
	@$(BIN)/python benchmarks/tables.py

lint: $(STAMP) ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## Remove the virtual environment and caches; outputs stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help install demo eurosat test test-long test-cluster bench results tables lint clean

.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
ALL := .venv/.installed-all
WORKERS ?= 3
# of what pip tells, one line for each package
SHORT := awk '/^ *(Collecting|Downloading|Building|Installing|Successfully)/ {print; fflush()}'

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Create .venv and install everything, pinned by constraints.txt

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("quantfl needs Python 3.11 or newer; this is " + sys.version.split()[0] + "; set PYTHON=...") if sys.version_info < (3, 11) else None'
	@echo "Installing into .venv what constraints.txt names, torch among it: minutes, and gigabytes where pip picks CUDA..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev,docs,ray,slurm,orbit,geo]' | $(SHORT)
	@touch $@
	@echo "Installed. To use it by hand: source $(BIN)/activate"

$(ALL): $(STAMP)
	@echo "Adding the runtimes of the deployment formats (ONNX Runtime, LiteRT), and trackers: minutes..."
	@$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev,docs,ray,slurm,orbit,geo,onnx,edge,tensorboard,mlflow,wandb]' | $(SHORT)
	@touch $@

demo: $(STAMP) ## Train with coded traffic on built-in synthetic images, compare precisions: about two minutes
	@$(BIN)/python -m fl.train experiment=demo hydra.run.dir='$${new_folder:outputs/demo}' | tee .venv/demo.log
	@$(BIN)/python compare_quantizations.py "$$(sed -n 's/^Model: *//p' .venv/demo.log)"
	@$(call look,.venv/demo.log)

eurosat: $(STAMP) ## Train on real EuroSAT with the default configuration, compare precisions (EUROSAT_ZIP, or it is downloaded)
	@$(BIN)/python -m fl.train hydra.run.dir='$${new_folder:outputs/eurosat}' | tee .venv/eurosat.log
	@$(BIN)/python compare_quantizations.py "$$(sed -n 's/^Model: *//p' .venv/eurosat.log)"
	@$(call look,.venv/eurosat.log)

# What a run left behind, and what to ask of it; $(1): the training's log
look = run=$$(sed -n 's/^Model: *\(.*\)\/final_model.pt$$/\1/p' $(1)); sed -n 's/^Traffic: */\nTraffic while it trained: /p' $(1); \
  printf '%s\n' '' "Look at next, in $$run/:" \
  '  report.html                      all of it on one page, in a browser' \
  '  rounds.png                       how it learned' \
  '  quantization_comparison.png      accuracy, file size and cost of each precision' \
  '  communication.json               every byte, by direction and client' \
  'and ask (outputs/README.md lists every file):' \
  "  $(BIN)/python -m fl communication $$run      \# the same traffic over satellite links: money, time, energy" \
  "  $(BIN)/python -m fl recommend $$run          \# what to train, ship and send" \
  '  EUROSAT_ZIP=EuroSAT.zip make eurosat                 \# the same on real images, FP32 traffic' \
  '  $(BIN)/python -m fl.train data.path=EuroSAT.zip codec@update=ecq codec@broadcast=ecq    \# with coded traffic'

wheel: $(STAMP) ## Build dist/quantfl-VERSION-py3-none-any.whl, with the configuration inside
	$(BIN)/python -m build --wheel

test: $(ALL) lint ## Lint, types, tests (those on real images need EUROSAT_ZIP)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) -m 'not long and not exhaustive'

test-long: $(ALL) ## The tests that take long: the whole demo, more ways to stop, kill and resume a run
	$(BIN)/python -m pytest --numprocesses $(WORKERS) -m 'long and not exhaustive'

test-all: test test-long test-cluster test-deployment ## All of them, and every attack instead of some (docs/security.md)
	tests/cluster/run.sh $(BIN)/python -m exhaustive
	$(BIN)/python -m pytest --numprocesses $(WORKERS) -m exhaustive

mutants: $(ALL) ## Put faults into the code one by one: the test that each of them names must fail (some minutes)
	$(BIN)/python tests/mutants/run.py --jobs $(WORKERS)

test-cluster: $(STAMP) ## submit_job.sh and SLURM sweeps on a real SLURM, started here where it may be (else says why not)
	tests/cluster/run.sh $(BIN)/python -m 'not exhaustive'

test-deployment: $(STAMP) ## Flower's deployment runtime on this machine: TLS, keys, refusals, kills (docs/deployment.md)
	$(BIN)/python -m pytest -v tests/runtime

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

results-orbit: $(STAMP) ## Train when contacts allow it, on real EuroSAT (EUROSAT_ZIP; about eight hours, can be stopped)
	@$(BIN)/python benchmarks/antennas.py --json docs/antennas.json
	@$(BIN)/python benchmarks/orbit.py

tables: $(STAMP) ## Make every table and headline of README.md and docs/ again from the stored figures
	@$(BIN)/python benchmarks/tables.py

lint: $(STAMP) ## Style, types, and the Dockerfile
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

docs: $(STAMP) ## Build the site of README.md and docs/ into build/site; any warning fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo "Site: build/site/index.html"

docs-serve: $(STAMP) ## Serve the site at 127.0.0.1:8000, made again when a document changes
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

clean: ## Remove the virtual environment and caches; outputs stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help install demo eurosat wheel test test-long test-all mutants test-cluster test-deployment bench results results-orbit tables lint docs docs-serve clean

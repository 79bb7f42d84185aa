# make help lists the commands. VENV, PYTHON and TORCH can be set: make setup TORCH=torch==2.11.0
VENV ?= .venv
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo serve bench soak fuzz test long coverage slow seconds lint types format docs masks clean
help: ## list the commands
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 10

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "HatLLM needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt "$(TORCH)" -e '.[dev]'
	# Hydra's Ray launcher without what it declares for AWS alone: boto3 wants an older python-dateutil.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c $(VENV)/constraints.txt hydra-ray-launcher
	touch $@

setup: $(STAMP) ## virtual environment, pinned packages, data and backbone fetched
	$(BIN)/python run.py task=prepare

demo: setup ## the main job: six arms on MovieLens-100K, one table
	$(BIN)/python run.py experiment=demo

RUNS = $(shell ls -t outputs/*/run.json 2>/dev/null | head -5 | xargs -rn1 dirname | paste -sd,)
serve: $(STAMP) ## the newest five runs under outputs over HTTP, and a page (RUNS=FOLDER,FOLDER: others)
	@test -n "$(RUNS)" || { echo "no finished run under outputs: make demo, or RUNS=FOLDER"; exit 2; }
	$(BIN)/python run.py task=serve 'task.run_folders=[$(RUNS)]'

WORKERS := -n auto --maxprocesses 8 --dist worksteal
test: $(STAMP) ## the tests that run between two edits
	$(BIN)/python -m pytest $(WORKERS) -m "not long and not slow and not gpu"

long: $(STAMP) ## whole runs in their variants: before you hand in; CI runs both
	$(BIN)/python -m pytest $(WORKERS) -m "long and not slow and not gpu"

coverage: $(STAMP) ## test and long, counting the lines they run (half as long again)
	$(BIN)/python -m pytest $(WORKERS) -m "not slow and not gpu" --cov --cov-report=term --cov-fail-under=90

slow: $(STAMP) ## what both leave out: processes, minutes, whole grids
	$(BIN)/python -m pytest $(WORKERS) -m "slow and not gpu"

seconds: $(STAMP) ## where the time of test and long goes, into docs/testing.md
	$(BIN)/python -m pytest $(WORKERS) -m "not slow and not gpu" --junitxml=.seconds.xml
	$(BIN)/python tests/seconds.py .seconds.xml
	rm .seconds.xml

BENCHMARKS := decode train targets trie curves prepare sampled
bench: setup ## a short version of each benchmark, into experiments/speed/results/quick
	for name in $(BENCHMARKS); do $(BIN)/python -m experiments.speed.$$name --quick --fresh || exit 1; done

soak: setup ## kill -9, SIGTERM, Ctrl-C at 70 random moments, the same command again, the same numbers
	$(BIN)/python -m experiments.robustness.soak --kills 70

fuzz: $(STAMP) ## thousands of wrong inputs, into experiments/robustness/results
	$(BIN)/python -m experiments.robustness.fuzz

lint: $(STAMP) ## ruff: rules and format; codespell: spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(STAMP) ## mypy --strict
	$(BIN)/mypy

format: $(STAMP) ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP) ## the site, into build/site; a warning is an error
	$(BIN)/python docs/build_site.py

masks: setup ## draw the masks of a real user
	$(BIN)/python run.py task=masks

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .cache build src/*.egg-info

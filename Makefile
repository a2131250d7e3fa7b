# Two commands are enough: `make quickstart` (set up, train, evaluate, score, PPO) and `make test` (set up, pass every test).
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TORCH  := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
export TOKENIZERS_PARALLELISM ?= false
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help setup quickstart test tutorials readme docs docs-check bench clean
help:                ## what each target does
	@sed -n 's/^\([a-z-]*\):.*## /  make \1 \t/p' $(MAKEFILE_LIST)

$(STAMP): constraints.txt settings.ini setup.py
	$(PYTHON) -c 'import sys; sys.exit("reward_kit needs Python 3.11 or newer; call make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $(STAMP)

setup: $(STAMP)      ## create .venv and install the tested versions

quickstart: $(STAMP) ## train a reward model on the playground, evaluate it, score text with it, teach a policy with it
	$(BIN)/reward-kit quickstart --output quickstart

test: $(STAMP)       ## export and clean leave no diff, ruff, every chapter, pytest
	PATH="$(CURDIR)/$(BIN):$$PATH" bash tests/run.sh

tutorials: $(STAMP)  ## run every tutorial
	PATH="$(CURDIR)/$(BIN):$$PATH" HF_HUB_OFFLINE=1 MPLBACKEND=agg OMP_NUM_THREADS=1 nbdev_test --path nbs/tutorials --n_workers 2 --timing

readme: $(STAMP)     ## README.md from nbs/index.ipynb
	$(BIN)/python scripts/readme.py

docs: $(STAMP)       ## the site, with Quarto, into _docs
	PATH="$(CURDIR)/$(BIN):$$PATH" python scripts/docs.py

docs-check: $(STAMP) ## look at the built site in Chromium: length, width, contrast, requests, search
	PATH="$(CURDIR)/$(BIN):$$PATH" python scripts/check_site.py

bench: $(STAMP)      ## measure accuracy and PPO on the playground (half an hour on two cores)
	PATH="$(CURDIR)/$(BIN):$$PATH" python benchmarks/playground_accuracy.py
	PATH="$(CURDIR)/$(BIN):$$PATH" python benchmarks/playground_ppo.py

clean:               ## remove what the other targets made
	rm -rf $(VENV) quickstart _proc _docs build dist *.egg-info .pytest_cache .ruff_cache

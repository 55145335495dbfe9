# Every target sets up what it needs; PYTHON chooses the interpreter (3.11 or newer).
VENV := .venv
BIN := $(VENV)/bin
SHELL := /bin/sh

.PHONY: help demo test e2e lint bench perturb fuzz campaign docs clean

help:  ## list the targets
	@sed -n 's/^\([a-z0-9]*\):.*## /\1	/p' Makefile | expand -t 12

$(VENV)/.ready: pyproject.toml tests/support/setup.sh
	rm -rf $(VENV)
	tests/support/setup.sh $(VENV)

demo: $(VENV)/.ready  ## cold start, warm start, and the proof that it hit
	$(BIN)/python tests/demo/demo.py

test: $(VENV)/.ready lint  ## every test, those with a real engine included
	@$(BIN)/python tests/support/suite.py

e2e: $(VENV)/.ready  ## the image, and pods of the chart in containers, with a fake and a real engine
	@$(BIN)/python -m pytest tests/e2e

lint: $(VENV)/.ready  ## ruff, mypy --strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(VENV)/.ready  ## make bench NAME=check|families|fill-hf|fill-s3|levers|noop-prefill|ranks|restore|stampede|start
	@test -f "tests/bench/$(NAME).py" || { \
	    echo "got NAME=$(NAME), expected one of: check families fill-hf fill-s3 levers noop-prefill ranks restore stampede start" >&2; exit 2; }
	@$(BIN)/python "tests/bench/$(NAME).py"

perturb: $(VENV)/.ready  ## starts that differ in one thing each: foretold, and what the engine did
	@$(BIN)/python tests/perturb/perturb.py

EXAMPLES := 20000
fuzz: $(VENV)/.ready  ## make fuzz EXAMPLES=N: hostile bytes for every parser, others each time; minutes
	FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -o timeout=0 tests/property

MINUTES := 10
HOURS := 0
CAMPAIGN := --minutes $(MINUTES) --hours $(HOURS) --seed "$(SEED)" --only "$(ONLY)" --plant "$(PLANT)"
campaign: $(VENV)/.ready  ## faults of every kind against everything; HOURS=N, SEED=S, ONLY=kill,pause, RECORD=FILE
	@$(BIN)/python tests/campaign/campaign.py $(CAMPAIGN) --record "$(RECORD)"

docs: $(VENV)/.ready  ## write the pages that are generated from the program
	$(BIN)/python tests/docs/cli_page.py > docs/cli.md
	$(BIN)/python tests/docs/families_page.py > docs/families.md
	$(BIN)/python tests/campaign/page.py > docs/reliability.md
	$(BIN)/python tests/docs/docker_page.py > deploy/docker/README.md

clean:  ## remove what the other targets made
	rm -rf $(VENV) .campaign .demo .e2e .scan build *.egg-info

# Every target sets up what it needs; PYTHON chooses the interpreter (3.11 or newer).
VENV := .venv
BIN := $(VENV)/bin
SHELL := /bin/sh

.PHONY: help demo test e2e lint bench perturb soak fuzz lock sbom audit campaign docs clean

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

bench: $(VENV)/.ready  ## make bench NAME=check|families|fill-hf|fill-s3|levers|noop-prefill|ranks|restore|scale|stack|stampede|start
	@test -f "tests/bench/$(NAME).py" || { \
	    echo "got NAME=$(NAME), expected one of: check families fill-hf fill-s3 levers noop-prefill ranks restore scale stack stampede start" >&2; exit 2; }
	@$(BIN)/python "tests/bench/$(NAME).py"

perturb: $(VENV)/.ready  ## starts that differ in one thing each: foretold, and what the engine did
	@$(BIN)/python tests/perturb/perturb.py

soak: HOURS := 2
soak: $(VENV)/.ready  ## make soak HOURS=N OUT=DIR: hours of starts, gc and harvests; what grows is named; root
	@HOURS=$(HOURS) $(BIN)/python tests/soak/soak.py

EXAMPLES := 20000
SECONDS := 60
fuzz: $(VENV)/.ready  ## make fuzz EXAMPLES=N SECONDS=N OUT=DIR: hostile bytes for every parser, others each time
	FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -o timeout=0 tests/property
	@RUNS=100000000 SECONDS=$(SECONDS) $(BIN)/python tests/fuzz/campaign.py

LOCK := deploy/docker/requirements.txt
lock: $(VENV)/.ready  ## what the image installs, resolved anew: versions and hashes
	$(BIN)/python deploy/docker/lock.py

sbom: $(VENV)/.ready  ## sbom.json: what the image installs, as CycloneDX
	$(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --of JSON -o sbom.json $(LOCK)

# What could not be looked up fails too (--strict): an audit that asked nobody finds nothing.
audit: $(VENV)/.ready  ## known vulnerabilities of what the image installs; asks pypi.org
	$(BIN)/pip-audit --strict --disable-pip --require-hashes -r $(LOCK)

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

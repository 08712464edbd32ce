# Every target sets up what it needs: a virtual environment in the checkout with the versions under constraints/.
# PYTHON=/path/to/python3 picks the interpreter (3.11 or newer), VENV= the directory, ARGS= goes to pytest.

SHELL := /bin/sh
PYTHON ?=
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin
READY := $(VENV)/installed

.DEFAULT_GOAL := help
.PHONY: stale help demo guides docs site-test test bench smoke lint format types imports ci test-matrix constraints clean

help: ## Show the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | awk -F '|' '{ printf "  make %-13s %s\n", $$1, $$2 }'

# An environment made by another version than the PYTHON asked for is no use.
ifneq ($(PYTHON),)
ifneq ($(shell "$(PYTHON)" -V 2>&1),$(shell { $(BIN)/python -V; } 2>/dev/null))
STALE := stale
endif
endif

$(READY): pyproject.toml $(wildcard constraints/*.txt) $(STALE)
	@.ci/venv $(VENV) "$(PYTHON)"

# The site's tools are installed only where the site is built.
$(READY)-docs: $(READY)
	@.ci/venv $(VENV) "$(PYTHON)" all,dev,docs
	@touch $@

demo: $(READY) ## Train in Haiku, convert, go on in Linen and in the core; the picture lands in demo-output/
	JAX_PLATFORMS=cpu $(BIN)/python examples/digits.py

guides: $(READY) ## Run every migration guide and the case study, print what each moved; ARGS='basic --json' for some guides
	JAX_PLATFORMS=cpu $(BIN)/python examples/migration $(ARGS)
	$(if $(ARGS),,JAX_PLATFORMS=cpu $(BIN)/python examples/case_study)

docs: $(READY)-docs ## Build the site into build/site, warnings as errors; docs/index.md says how to read it
	JAX_PLATFORMS=cpu $(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -d build/doctrees docs build/site

site-test: docs ## Build the site and drive it in a headless Chromium, if there is one
	BRIDGES_SITE=build/site $(BIN)/python -m pytest -n 2 tests/site -rs $(ARGS)

test: $(READY) ## Run the tests, the docstring examples and the README's, warnings as errors
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

bench: $(READY) ## Run the benchmarks against the peers and print one page; ARGS="dispatch --quick"
	$(BIN)/python -m benchmarks $(ARGS)

pairs: $(READY) ## Infer the mapping of every pair of models, print the tables; ARGS='gpt --json rows.json', ARGS=--docs
	JAX_PLATFORMS=cpu $(BIN)/python -m tests.pairs.table $(ARGS)

smoke: $(READY) ## Run the docstring examples and the tests marked smoke; install the wheel elsewhere and drive every command
	$(BIN)/python -m pytest -n 2 -m smoke $(ARGS)
	.ci/wheel $(VENV)

lint: $(READY) ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## Mend style and formatting where that is safe
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY) ## Check types
	$(BIN)/mypy

imports: $(READY) ## Check that imports point one way
	$(BIN)/lint-imports --no-cache # its cache does not notice a module that came into being

ci: ## Run what CI runs
	bash .ci/run

test-matrix: ## Run the tests on the oldest and the newest Python present
	@set -e; pythons=$$(.ci/pythons); test -n "$$pythons" || .ci/pythons --default; \
	{ echo "$$pythons" | head -n 1; echo "$$pythons" | tail -n 1; } | uniq | while read -r version python; do \
	    echo "== Python $$version"; \
	    $(MAKE) --no-print-directory test VENV=.venv-$$version PYTHON="$$python" </dev/null; \
	done

constraints: ## Write constraints/ anew from the newest versions that pass the tests, one file for each Python present
	@set -e; mkdir -p constraints; .ci/pythons | while read -r version python; do \
	    echo "== Python $$version"; venv=.venv-newest-$$version; rm -rf $$venv; \
	    UNCONSTRAINED=1 .ci/venv $$venv "$$python" all,dev,docs </dev/null; \
	    $$venv/bin/python -m pytest -n 2 -q </dev/null; \
	    { echo "# Tested on Python $$version; written by make constraints."; \
	      $$venv/bin/python -m pip freeze --exclude-editable --disable-pip-version-check; \
	    } > constraints/py$$(echo $$version | tr -d .).txt; \
	done

clean: ## Remove the environments, the caches and what the demo wrote
	rm -rf .venv .venv-3.* .venv-newest-* demo-output build dist *.egg-info \
	    .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

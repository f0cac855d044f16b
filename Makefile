# Every target does its own set-up, and a second run reuses it. Override with VENV=DIR and PYTHON=python3.12.
VENV ?= .venv
PYTHON ?=
ARGS ?=
# Files of tests that run side by side; some are mostly waiting, so two pay even on one core.
JOBS ?= 2

STAMP := $(VENV)/.accrete-installed
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint image clean

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

venv: $(STAMP) ## Make the virtual environment

$(STAMP): pyproject.toml deploy/make-venv.sh
	@PYTHON='$(PYTHON)' deploy/make-venv.sh '$(VENV)'
	@touch '$@'

demo: $(STAMP) ## Learn CIFAR-10 live while answering requests; ARGS='--keep --json FILE'
	$(BIN)/accrete demo $(ARGS)

test: $(STAMP) ## Run the unit and integration tests; ARGS='-k NAME'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit tests/integration -n $(JOBS) --dist loadfile $(ARGS)

lint: $(STAMP) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

image: ## Build the container image with buildah and poll its /readyz
	deploy/check-image.sh

clean: ## Remove what these targets made: the environment, caches, demo output, the image store
	rm -rf '$(VENV)' build dist demo-output *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find cl_engine daemon tests -name __pycache__ -type d -prune -exec rm -rf {} +
	deploy/check-image.sh --clean

# `make demo` and `make test` need nothing but Python >= 3.11, a C compiler and a package index:
# each makes .venv/ in this folder first if it isn't there.
#
#   PYTHON   the interpreter .venv/ is made with
#   IMAGE_OPTIONS   options of scripts/build_image.py, e.g. "--stand-in BASE=python"
#   TORCH    which torch to install, or "system" to use the one that PYTHON already has
#            (docs/install.md)

SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# One thread for each test process: distributed tests start several on the same cores.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
# Files side by side, the long ones first; the tests of one share what they have made.
SIDE_BY_SIDE := -n 2 --dist loadfile --no-loadscope-reorder --durations=25 --durations-min=5
SHELL_SCRIPTS := $(wildcard scripts/*.sh demo/*.sh slurm/*.sh docker/*.sh) .ci/run
DOCKERFILES := docker/Dockerfile docker/Dockerfile.cpu

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast browser test-slurm chaos image bench bench-gpu lint format typecheck audit docs clean

help: ## What can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(INSTALLED) ## Make .venv/ and install everything into it

$(INSTALLED): setup.py requirements/build.txt requirements/torch.txt requirements/constraints.txt scripts/install.sh
	@test -x $(BIN)/python || "$(PYTHON)" -m venv \
	    $(if $(filter system,$(TORCH)),--system-site-packages) $(VENV)
	PYTHON=$(BIN)/python TORCH="$(TORCH)" scripts/install.sh dev
	@touch $@

demo: $(INSTALLED) ## Pretrain a small BERT in stages, from raw text, with 2 processes
	PATH="$(CURDIR)/$(BIN):$$PATH" demo/run.sh

test: $(INSTALLED) ## All tests but those that need a GPU or a Slurm
	$(TEST_ENV) $(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not gpu and not slurm"

test-fast: $(INSTALLED) ## The tests without the slow ones
	$(TEST_ENV) $(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not gpu and not slurm and not slow"

browser: ## Chromium for the tests of the report's page, from Debian's packages (root); they are skipped without
	@command -v chromium >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	    apt-get install -qq -y --no-install-recommends -o DPkg::Lock::Timeout=120 chromium >/dev/null; }

test-slurm: $(INSTALLED) ## Job scripts on a Slurm of two nodes, made for it (root, Debian)
	$(TEST_ENV) $(BIN)/python -m pytest -m slurm tests/slurm

chaos: $(INSTALLED) ## 140 faults at random moments: kills, hangs, disks, damaged files; the table of docs/reliability.md
	$(TEST_ENV) $(BIN)/python -m tests.chaos.faults

image: $(INSTALLED) ## mslt-ds:cpu, without a Docker engine (root, buildah)
	$(BIN)/python scripts/build_image.py $(IMAGE_OPTIONS)

bench: $(INSTALLED) ## Measurements on the CPU
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.peers --model base --device cpu --write

bench-gpu: $(INSTALLED) ## Tests and measurements that need a GPU
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python -m benchmarks --batch 32 --repeats 20
	$(BIN)/python -m benchmarks.optimizer --device cuda --model base large --repeats 20 --write
	for length in 128 512; do for model in base large; do \
	    $(BIN)/python -m benchmarks.peers --model $$model --device cuda --seq-length $$length --write || exit 1; \
	done; done

lint: $(INSTALLED) ## ruff, shellcheck, hadolint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck --external-sources $(SHELL_SCRIPTS)
	$(BIN)/hadolint $(DOCKERFILES)

format: $(INSTALLED) ## Rewrite the Python files as ruff would have them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(INSTALLED) ## pyright
	$(BIN)/pyright

audit: ## Known vulnerabilities of the pinned packages; asks the package index's advisories
	test -x .audit/bin/pip-audit || { "$(PYTHON)" -m venv .audit && \
	    .audit/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/audit.txt; }
	.audit/bin/pip-audit --strict --no-deps --disable-pip $(addprefix --requirement requirements/, \
	    build.txt torch.txt constraints.txt audit.txt)

docs: $(INSTALLED) ## The documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean: ## Everything that was made, the environment too
	rm -rf $(VENV) .audit .demo .chaos build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis

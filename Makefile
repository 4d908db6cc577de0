# `make test` and `make demo` do all of their own set-up, in .venv. Another Python: make test PYTHON=python3.12
PYTHON ?= python3
# Arguments for pytest: make test PYTEST_ARGS="-k matcher"
PYTEST_ARGS ?= -n logical --dist loadfile --no-loadscope-reorder
LONG_ARGS ?= -n logical --dist loadgroup

VENV := .venv
BIN := $(VENV)/bin
# One stamp per Python asked for, so that asking for another one installs anew.
STAMP := $(VENV)/.installed-$(subst /,_,$(PYTHON))

.DEFAULT_GOAL := help
.PHONY: help install test test-long gpu-check lint format demo compare-demo clean

help:
	@echo "make test          check style and types, and run all tests"
	@echo "make test-long     run the tests that take minutes: hundreds of damaged inputs, every family of backbones, real trainings on a real Slurm"
	@echo "make gpu-check     on a machine with a GPU: run the tests that need one, measure, and print a table; 8 minutes"
	@echo "make demo          make a small data set, train on it, evaluate, and draw what was found"
	@echo "make compare-demo  train two heads on two backbones with two seeds on synthetic images, and report; 20 minutes"
	@echo "make lint          check style and types only"
	@echo "make format        put the code into the project's format"
	@echo "make install       only create .venv with everything in it"
	@echo "make clean         remove .venv and caches (not runs/ or data/)"

install: $(STAMP)

test: lint
	DETR_CONTAINER_PINNED=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

test-long: $(STAMP)
	DETR_CONTAINER_PINNED=1 $(BIN)/python -m pytest -m long $(LONG_ARGS)

# Installs nothing, since such a machine may have no network: without .venv it takes $(PYTHON) as it is.
gpu-check:
	@PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" \
	  $(if $(wildcard $(BIN)/python),$(BIN)/python,"$(PYTHON)") -m detr_container.measure.gpu_check

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(STAMP)
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

demo: $(STAMP)
	$(BIN)/detr-container demo

compare-demo: $(STAMP)
	$(BIN)/detr-container compare --base compare_demo --heads detr smca --backbones resnet18 container_light_small \
	  --seeds 0 1 --name compare-demo --at-once 2

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "There is no $(PYTHON). Install Python 3.11 or newer (apt install python3 python3-venv), or name one:" \
	    "make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is $$("$(PYTHON)" --version 2>&1), but Python 3.11 or newer is needed. Name another one:" \
	    "make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@version='import sys; print(*sys.version_info[:2])'; \
	if [ "$$($(BIN)/python -c "import pip; $$version" 2>/dev/null)" != "$$("$(PYTHON)" -c "$$version")" ]; then \
	  "$(PYTHON)" -m venv --clear $(VENV); \
	fi
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@rm -f $(VENV)/.installed-*
	@touch $@

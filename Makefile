# Everything happens in .venv; each target prepares what it needs and does it again only when
# pyproject.toml or constraints.txt changed. Another Python: make PYTHON=/path/to/python3.12 ...
PYTHON ?= $(or $(shell for name in python3.11 python3.12 python3.13 python3; do command -v $$name && break; done),python3)
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/bookshop
ARGS ?=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

SOAKS := $(filter-out __init__,$(patsubst bench/soak/%.py,%,$(wildcard bench/soak/*.py)))
BENCHES := $(filter-out __init__ common,$(patsubst bench/%.py,%,$(wildcard bench/*.py)))

.DEFAULT_GOAL := help
.PHONY: help install quickstart test check docs proto clean
.DELETE_ON_ERROR:

help: ## this list
	@echo "riverrun: a language model from data to a running application."
	@grep -hE '^[a-z%-]+:.*## ' Makefile | sed -E 's/^([a-z%-]+):.*## (.*)/  make \1\t\2/' | expand -t 26

install: $(VENV)/.installed ## .venv with riverrun and everything its recipes use
	@echo "done: $(BIN)/riverrun --help"

quickstart: $(VENV)/.installed ## from an open model to a running shop assistant: recipes/bookshop into runs/bookshop
	$(BIN)/riverrun run recipes/bookshop --out $(OUT) $(ARGS)

test: $(VENV)/.developed ## the whole test suite, a file at a time on each core (ARGS="-k name" for a part)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile $(ARGS)

check: $(VENV)/.developed ## format, lint, types, house rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_house.py tests/test_docs.py

proto: $(VENV)/.developed ## riverrun.desc again from riverrun.proto
	$(BIN)/python -m grpc_tools.protoc -I riverrun/serve/grpc --descriptor_set_out=riverrun/serve/grpc/riverrun.desc riverrun.proto

docs: $(VENV)/.developed ## write again the pages that are made from the code
	$(BIN)/python docs/generate.py

bench-%: $(VENV)/.developed ## one bench: table and JSON (ARGS="--quick --peers none --json FILE"); make bench-spine
	@test -f bench/$*.py || { echo "there is no bench '$*'; there are: $(BENCHES)" >&2; exit 2; }
	$(BIN)/python -m bench.$* $(ARGS)

soak-%: $(VENV)/.developed ## one long run under adversity (ARGS="--quick"); make soak-kill
	@test -f bench/soak/$*.py || { echo "there is no soak run '$*'; there are: $(SOAKS)" >&2; exit 2; }
	$(BIN)/python -m bench.soak.$* $(ARGS)

clean: ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "riverrun needs Python 3.11 or newer, '$(PYTHON)' is $$("$(PYTHON)" --version 2>/dev/null || echo not there): name another with make PYTHON=/path/to/python3.12 ..." >&2; exit 2; }
	@rm -rf $(VENV)
	@"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "'$(PYTHON)' cannot make a virtual environment: install its venv module (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 2; }
	@touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml constraints.txt
	@echo "installing riverrun and what its recipes use into $(VENV) ..."
	@$(PIP) --editable '.[all]' || { echo "the packages could not be installed: check the network and pip's settings, then run make again" >&2; exit 2; }
	@touch $@

$(VENV)/.developed: $(VENV)/.installed
	@echo "installing the test tools into $(VENV) ..."
	@$(PIP) --editable '.[all,dev]' || { echo "the test tools could not be installed: check the network and pip's settings, then run make again" >&2; exit 2; }
	@touch $@

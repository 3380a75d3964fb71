# Everything here works from a fresh clone with Python 3.11 or newer and make. `make help` lists it.
VENV := .venv
SLOW := .venv-slow
FAST := not slow and not faults
CACHE := $(CURDIR)/.cache

# The first interpreter that runs and is new enough. `make test PYTHON=/path/to/python` overrides.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& echo "$$p" && break; done)

.PHONY: help rehearse test test-slow llama-cpp slow-parts lint format bench faults coverage clean clean-all

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | awk -F '|' '{ printf "make %-11s %s\n", $$1, $$2 }'

rehearse: $(VENV)/.installed ## the example through every stage on simulated models, with planted faults
	$(VENV)/bin/finetune rehearse

test: $(VENV)/.installed ## the fast suite: no torch, no network, no key
	$(VENV)/bin/python -m pytest -q -n auto --dist loadfile -m "$(FAST)"

test-slow: llama-cpp slow-parts ## what needs torch, a native build or another program
	PATH="$(CACHE)/npm/node_modules/.bin:$$PATH" \
	TIKTOKEN_CACHE_DIR="$${TIKTOKEN_CACHE_DIR:-$(CACHE)/tiktoken}" \
	$(SLOW)/bin/python -m pytest -q -m slow -rs

lint: $(VENV)/.installed ## ruff, strict typing, the budgets of the house
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy --strict code
	$(VENV)/bin/python tests/house.py
	bash -n .ci/run

format: $(VENV)/.installed ## let ruff rewrite what it can
	$(VENV)/bin/python -m ruff check --fix .
	$(VENV)/bin/python -m ruff format .

bench: $(VENV)/.installed ## the benchmarks, against a server of our own on this machine
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(VENV)/bin/python benchmarks/run.py

faults: $(VENV)/.installed ## the fault bench: kills, full disks, broken servers
	$(VENV)/bin/python -m pytest -q -m faults

coverage: $(VENV)/.installed ## the fast suite with a floor for each kind of code
	$(VENV)/bin/python -m coverage erase
	$(VENV)/bin/python -m coverage run -m pytest -q -n auto --dist loadfile -m "$(FAST)"
	$(VENV)/bin/python -m coverage combine -q
	$(VENV)/bin/python -m coverage json -q -o .coverage.json
	$(VENV)/bin/python tests/coverage_floors.py .coverage.json

# Builds from source, 4 to 8 minutes the first time; the wheel stays in .cache/wheels.
# A build that fails says why, and the tests that need it skip with that reason.
llama-cpp: $(SLOW)/.installed ## llama-cpp-python for the slow tests
	$(SLOW)/bin/python tests/slow_parts.py llamacpp

slow-parts: $(SLOW)/.installed ## everything else that the slow tests can use
	$(SLOW)/bin/python tests/slow_parts.py transformers claude claude-new tiktoken

clean: ## remove what tests and builds left behind
	rm -rf build dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find code tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

clean-all: clean ## and the environments and downloads as well
	rm -rf $(VENV) $(SLOW) .cache

define new-venv
	@python="$(PYTHON)"; \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Python 3.11 or newer is needed, and \"$${python:-none found}\" is not that." >&2; \
		echo "Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 2; }; \
	"$$python" -m venv $(1) || { \
		echo "\"$$python\" can't make an environment. On Debian and Ubuntu: apt install python3-venv" >&2; \
		exit 2; }
endef

$(VENV)/.installed: pyproject.toml
	$(call new-venv,$(VENV))
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

$(SLOW)/.installed: pyproject.toml constraints-cpu.txt
	$(call new-venv,$(SLOW))
	$(SLOW)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-cpu.txt -e '.[dev]'
	@touch $@

# Everything a developer runs. The environment is made on first use and renewed when the locked versions change.

VENV ?= .venv
ARGS ?=
SEEDS ?= 0:300
BIN := $(VENV)/bin
# Two processes are enough for two cores; more would starve the tests that run a swarm of real processes.
PYTEST := $(BIN)/pytest --numprocesses 2 --dist loadgroup
STAMP := $(VENV)/.installed
FOLDERS := protocol dht peer cli configs
# The user's own choice first; Debian's python3 may be too old while a newer one lies beside it.
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)

.PHONY: help env dev format lint types check test exhaustive demo sim table byzantine bench clean
.DEFAULT_GOAL := help

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env: $(STAMP) ## make the environment (VENV=.venv, PYTHON=... to choose the interpreter)

# One shell, so that the interpreter found is the one used; -e: the first failure ends it.
$(STAMP): pyproject.toml constraints.txt
	@set -e; \
	for candidate in $(PYTHONS); do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found="$$candidate"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "crowdsurf needs Python 3.11 or newer; install it, or name it: make env PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	if ! "$$found" -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "$$found cannot make environments; install its venv module (Debian: apt install python3-venv)" >&2; exit 1; \
	fi; \
	echo "making $(VENV) with $$("$$found" -V); the first time takes some minutes"; \
	"$$found" -m venv "$(VENV)"; \
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"; \
	touch "$@"

dev: .dev/crowdsurf/.made ## make .dev/crowdsurf, the folder of links that type checkers and editors read

.dev/crowdsurf/.made: Makefile
	@mkdir -p .dev/crowdsurf
	@for folder in $(FOLDERS); do ln -sfn "../../$$folder" ".dev/crowdsurf/$$folder"; done
	@touch $@

format: env ## rewrite the source in the house format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lint: env ## check format and lint rules, change nothing
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

types: env dev ## check types: strict on protocol/ and dht/, looser on peer/ and cli/
	@$(BIN)/mypy -p crowdsurf.protocol -p crowdsurf.dht -p crowdsurf.peer -p crowdsurf.cli

check: lint types ## before every commit: lint, types, house rules and the fast tests
	@$(PYTEST) -q -m "not network and not slow and not gpu" $(ARGS)

test: env ## the full test suite (GPU tests are skipped without a GPU)
	@$(PYTEST) $(ARGS)

exhaustive: env ## what `make test` tries a few times, many times: 100,000 honest aggregates, more swarms (20 minutes)
	@CROWDSURF_EXHAUSTIVE=1 $(PYTEST) -q tests/peer/compute/test_projections.py tests/simulation/test_justice.py $(ARGS)

demo: env ## train a model with four peers on this machine
	@$(BIN)/crowdsurf demo $(ARGS)

sim: env ## simulate 300 swarms in which much goes wrong and check every promise (SEEDS=0:60 for fewer)
	@$(BIN)/crowdsurf simulate --swarm-test --seeds $(SEEDS) $(ARGS)

table: env ## measure every rule under every attack and write docs/robustness.md; goes on where it was
	@$(BIN)/crowdsurf robustness docs/robustness.md $(ARGS)

byzantine: env ## measure what attackers achieve against verification and write docs/byzantine.md; goes on where it was
	@$(BIN)/crowdsurf byzantine docs/byzantine.md $(ARGS)

bench: env ## measure a certified step beside a plain all-reduce
	@$(BIN)/crowdsurf bench step $(ARGS)

clean: ## remove what tools left behind; the environment stays (rm -rf .venv to start over)
	@rm -rf .dev build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find $(FOLDERS) tests -name __pycache__ -type d -prune -exec rm -rf {} +

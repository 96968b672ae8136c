# Targets of the README. Everything happens inside .venv; nothing but Python 3.11 or newer is needed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet install

.PHONY: demo test check bench interop lock clean help

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -e 's/:.*##/\t/' | sort

# Two hash-pinned sets: what runs (demo), and what tests it on top of that.
$(VENV)/.run: requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --require-hashes --only-binary :all: -r requirements.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.lock
	$(PIP) --require-hashes --only-binary :all: -r requirements-dev.lock
	@touch $@

demo: $(VENV)/.run ## the whole story on loopback, with what was expected and what was seen
	$(BIN)/aims demo

test: $(VENV)/.dev ## every ring of tests, on SQLite and PostgreSQL
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.dev ## format, lint, types, import layers (static only)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev ## numbers with the raw operations of the same run as baseline
	$(BIN)/python -m benchmarks

interop: $(VENV)/.dev ## foreign programs against a running trust domain
	$(BIN)/python -m pytest tests/interop

lock: ## resolve both locks anew (needs uv)
	uv pip compile pyproject.toml --extra server --extra mcp --extra build --generate-hashes --no-annotate --no-header \
	  --exclude-newer "$$(date -d '7 days ago' +%F)" --python-version 3.11 --python-platform linux -o requirements.lock
	uv pip compile pyproject.toml --all-extras --constraint requirements.lock --generate-hashes --no-annotate --no-header \
	  --exclude-newer "$$(date -d '7 days ago' +%F)" --python-version 3.11 --python-platform linux -o requirements-dev.lock

clean: ## remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

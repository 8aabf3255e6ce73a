# Two commands for a fresh machine: `make serve` and `make test`. Each installs what it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The package with its hot path compiled, for tests and benchmarks: it is found before the source when it is named so.
COMPILED := build/compiled
WITH_COMPILED := PYTHONPATH=$(CURDIR)/$(COMPILED)
SOURCES := pyproject.toml setup.py $(shell find src -name '*.py' -o -name '*.c')

.PHONY: help serve test test-compiled check format bench bench-quick bench-stores lock clean

help:            ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

serve: $(if $(wildcard $(VENV)/.installed-dev),$(VENV)/.installed-dev,$(VENV)/.installed)  ## Install, and receive mail on 127.0.0.1:2525 into guerrilla.db
	$(BIN)/guerrillad serve

test: $(VENV)/.installed-dev  ## Install what the tests need, run them all, and hold the coverage
	scripts/install-debian-packages tests/debian-packages.txt
	rm -f .coverage .coverage.*
	$(BIN)/python -m coverage run -m pytest
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --fail-under=95
	$(BIN)/python -m coverage report --include='src/guerrilla/smtp/*,src/guerrilla/backends/*,src/guerrilla/scan.py' --fail-under=100

test-compiled: $(COMPILED)/.built  ## The same tests, of what mypyc makes of the same source
	scripts/install-debian-packages tests/debian-packages.txt
	$(WITH_COMPILED) $(BIN)/guerrillad version | grep 'compiled with mypyc'
	$(WITH_COMPILED) $(BIN)/python -m pytest

check: $(VENV)/.installed-dev  ## Lint, types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev  ## Lay the code out
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(COMPILED)/.built  ## Measure the server beside others: table, JSON and picture; a quarter of an hour
	scripts/install-debian-packages benchmarks/debian-packages.txt
	$(WITH_COMPILED) $(BIN)/python -m benchmarks

bench-quick: $(COMPILED)/.built  ## The same, once and less of it, in about a minute
	scripts/install-debian-packages benchmarks/debian-packages.txt
	$(WITH_COMPILED) $(BIN)/python -m benchmarks --quick

bench-stores: $(COMPILED)/.built  ## The same for each store, beside what the disk alone would allow
	scripts/install-debian-packages tests/debian-packages.txt
	scripts/install-debian-packages benchmarks/debian-packages.txt
	$(WITH_COMPILED) $(BIN)/python -m benchmarks.stores

lock: $(VENV)/.installed-dev  ## Resolve the versions that development is done with anew
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras --no-header --no-annotate \
	    --no-emit-package guerrilla --output-file requirements-dev.lock pyproject.toml

clean:           ## Remove what was installed and built here
	rm -rf $(VENV) build dist .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# A Debian machine may have a Python without venv: then, and only then, its package is installed.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); scripts/install-debian-packages scripts/venv-packages.txt; $(PYTHON) -m venv $(VENV); }

# A newcomer gets the package itself, compiled if there is a compiler; who develops it, the source as it stands.
$(VENV)/.installed: $(VENV)/bin/python $(SOURCES)
	@echo 'installing; where there is a C compiler, it is used, and that takes about half a minute'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check .
	touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml setup.py requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-dev.lock
	GUERRILLA_COMPILE=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(COMPILED)/.built: $(VENV)/.installed-dev $(SOURCES)
	scripts/install-debian-packages scripts/compiler-packages.txt
	rm -rf build
	GUERRILLA_COMPILE=1 $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(COMPILED) .
	touch $@

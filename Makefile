# make demo       serve the example app, on URL=sqlite:///demo.db or the one given
# make test       run every test on real servers, with branch coverage, in WORKERS=5 processes with servers of their own
# make test-engines run the suites on other servers: Valkey, Redis 8 and 6, PostgreSQL 18, PgBouncer, Galera, HAProxy
# make lint       ruff, ruff format, mypy --strict
# make docs       build the documents into docs/_build/html
# make tables     write the tables of the documents that are made from the code
# make package    build sdist and wheel into dist/, and run the tests of the sdist against the installed wheel
# make bench      measure, next to other libraries, and write docs/performance.rst; takes half an hour (ARGS=--quick: 2)
# make fuzz       run the tests that make up their values with a thousand of them instead of forty (ARGS='-k merge')
# make chaos      break every server and its network under 64 visitors; takes seven minutes (ARGS='--storage redis')
# make simulate   try SEEDS=10000 orders of events, and print what came of them (ARGS='--replay 24': one, event by event)
# make simulate-faults put faults into copies of the package, and tell which seed of the simulation finds each
# make mutants    put the defences of docs/security.rst out in copies of the package, and tell which the tests notice
# make screenshot take the picture of the demo, docs/demo.png
# make servers    install the servers that the tests need and that are missing
# make constraints write constraints.txt and constraints-oldest.txt anew, as of today; on Python 3.11
# make clean      remove all that the other targets made
#
# .venv gets the versions in constraints.txt. With LATEST=1 a target runs in .venv-latest, which gets the newest of
# everything once a day; with OLDEST=1 in .venv-oldest, which gets the oldest versions that setup.py allows.

PYTHON ?= python3
URL ?= sqlite:///demo.db
PORT ?= 8080
# More than there are processors, because half of the tests' time is waiting. An idle one takes tests from another.
WORKERS ?= 5
SEEDS ?= 10000

ifneq ($(LATEST),)
VENV := .venv-latest
MADE := $(VENV)/made-$(shell date +%Y-%m-%d)
else
VENV := .venv$(if $(OLDEST),-oldest)
CONSTRAINTS := constraints$(if $(OLDEST),-oldest).txt
endif
BIN := $(VENV)/bin
MADE ?= $(VENV)/made
PYTEST := $(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal

# What is compiled is kept, even if the environment says otherwise: the tests start hundreds of Python processes.
export PYTHONDONTWRITEBYTECODE :=

# In environment variables, which also hold where pip builds a package; from pip 25.3 on that is the second one.
constrained = env $(if $(1),PIP_CONSTRAINT=$(1) PIP_BUILD_CONSTRAINT=$(1))
PIP := $(call constrained,$(CONSTRAINTS)) $(BIN)/python -m pip

.PHONY: demo test test-engines lint docs tables package bench fuzz chaos simulate simulate-faults mutants screenshot \
	servers constraints clean

demo: $(VENV)/installed
	$(BIN)/python -u -X dev examples/demo.py --port $(PORT) '$(URL)'

test: $(VENV)/developer servers
	$(PYTEST) --cov --cov-report=term $(ARGS)

# Their packages are in an environment of their own, which holds nothing else: only their programs are used.
test-engines: $(VENV)/developer .venv-engines/installed servers
	sh tests/install-servers engines
	$(BIN)/python -m tests.engines --packages .venv-engines/lib/python3*/site-packages --workers $(WORKERS) $(ARGS)

lint: $(VENV)/developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/developer
	$(BIN)/sphinx-build -n -W --keep-going --quiet docs docs/_build/html
	@echo docs/_build/html/index.html

tables: $(VENV)/developer
	$(BIN)/python -m docs.tables

bench: .venv-bench/installed servers
	.venv-bench/bin/python -m benchmarks --save benchmarks/results.json --write-docs $(ARGS)

fuzz: $(VENV)/developer servers
	$(PYTEST) --hypothesis-profile fuzz -m hypothesis --timeout 3600 $(ARGS)

chaos: $(VENV)/developer servers
	$(BIN)/python -m tests.chaos $(ARGS)

simulate: $(VENV)/developer
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) $(ARGS)

simulate-faults: $(VENV)/developer
	$(BIN)/python -m tests.simulation.faults $(ARGS)

mutants: $(VENV)/developer servers
	$(BIN)/python -m tests.mutants $(ARGS)

# The tests have no checkout around them: what the sdist or the wheel lacks is missing.
package: $(VENV)/developer
	rm -rf dist
	$(call constrained,$(CONSTRAINTS)) $(BIN)/python -m build --quiet
	$(BIN)/python -m twine check --strict dist/*
	set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT INT TERM; \
	tar -xzf dist/*.tar.gz -C "$$folder" --strip-components 1; \
	rm -r "$$folder/aiohttp_store"; \
	$(BIN)/python -m venv "$$folder/$(VENV)"; touch "$$folder/$(MADE)"; \
	$(call constrained,$(CONSTRAINTS)) "$$folder/$(BIN)/python" -m pip install --quiet "$$(echo dist/*.whl)[all]"; \
	touch "$$folder/$(VENV)/installed"; \
	$(MAKE) -C "$$folder" servers; \
	cd "$$folder"; $(PYTEST) $(ARGS)

screenshot: $(VENV)/developer servers
	$(BIN)/python -m tests.support.browser docs/demo.png

servers: $(VENV)/developer
	BIN='$(BIN)' PIP='$(PIP)' sh tests/install-servers

constraints:
	PYTHON='$(PYTHON)' sh tests/write-constraints

# Made anew when a pin has changed, so that nothing is left of other versions.
$(MADE): $(CONSTRAINTS)
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); sh tests/install-servers venv && $(PYTHON) -m venv $(VENV); }
	touch $@

$(VENV)/installed: $(MADE) setup.py
	$(PIP) install --quiet --editable '.[all]'
	touch $@

$(VENV)/developer: $(VENV)/installed requirements-dev.txt requirements-dev-alone.txt
	$(PIP) install --quiet --requirement requirements-dev.txt
	$(PIP) install --quiet --no-deps --requirement requirements-dev-alone.txt
	touch $@

.venv-engines/installed: constraints-engines.txt
	rm -rf .venv-engines
	$(PYTHON) -m venv .venv-engines
	.venv-engines/bin/python -m pip install --quiet --no-deps --requirement constraints-engines.txt
	touch $@

# An environment of its own, so that the developer's stays clean; the contenders are the newest, and without npm those on
# Node are left out.
.venv-bench/installed: setup.py constraints.txt benchmarks/requirements.txt benchmarks/package.json
	$(PYTHON) -m venv .venv-bench
	$(call constrained,constraints.txt) .venv-bench/bin/python -m pip install --quiet \
		--editable '.[all]' --requirement benchmarks/requirements.txt
	! command -v npm >/dev/null || npm install --prefix benchmarks --silent --no-package-lock
	touch $@

clean:
	rm -rf .venv .venv-latest .venv-oldest .venv-bench .venv-engines
	rm -rf benchmarks/node_modules benchmarks/package-lock.json benchmarks/results.json
	rm -rf docs/_build build dist *.egg-info .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache demo.db*
	find . -name __pycache__ -prune -exec rm -rf {} +

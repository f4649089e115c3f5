# make demo       serve the example app, on URL=sqlite:///demo.db or the one given
# make test       run every test on real servers, with branch coverage, in WORKERS=5 processes with servers of their own
# make lint       ruff, ruff format, mypy --strict
# make docs       build the documents into docs/_build/html
# make package    build sdist and wheel into dist/, and run the tests of the sdist against the installed wheel
# make bench      measure, next to other libraries, and write docs/performance.rst; takes half an hour (ARGS=--quick: 2)
# make fuzz       try a thousand made-up values, where the tests try forty; takes ten minutes (ARGS='-k merge')
# make chaos      break every server and its network under 64 visitors; takes seven minutes (ARGS='--storage redis')
# make screenshot take the picture of the demo, docs/demo.png
# make servers    install the servers that the tests need and that are missing
# make clean      remove all that the other targets made

PYTHON ?= python3
BIN := .venv/bin
URL ?= sqlite:///demo.db
PORT ?= 8080
# More than there are processors, since half of the tests' time is waiting. Who has no more tests takes from another.
WORKERS ?= 5
PYTEST := $(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal

# What is compiled is kept, even if the environment says otherwise: the tests start hundreds of Python processes.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test lint docs package bench fuzz chaos screenshot servers clean

demo: .venv/installed
	$(BIN)/python -u -X dev examples/demo.py --port $(PORT) '$(URL)'

test: .venv/developer servers
	$(PYTEST) --cov --cov-report=term $(ARGS)

lint: .venv/developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/developer
	$(BIN)/sphinx-build -n -W --keep-going --quiet docs docs/_build/html
	@echo docs/_build/html/index.html

bench: .venv-bench/installed servers
	.venv-bench/bin/python -m benchmarks --save benchmarks/results.json --write-docs $(ARGS)

fuzz: .venv/developer servers
	$(PYTEST) --hypothesis-profile fuzz -m hypothesis --timeout 3600 $(ARGS)

chaos: .venv/developer servers
	$(BIN)/python -m tests.chaos $(ARGS)

# The tests have no checkout around them: what the sdist or the wheel lacks is missing.
package: .venv/developer
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/python -m twine check --strict dist/*
	set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT INT TERM; \
	tar -xzf dist/*.tar.gz -C "$$folder" --strip-components 1; \
	rm -r "$$folder/aiohttp_store"; \
	$(BIN)/python -m venv "$$folder/.venv"; \
	"$$folder/.venv/bin/python" -m pip install --quiet "$$(echo dist/*.whl)[all]"; \
	touch "$$folder/.venv/installed"; \
	$(MAKE) -C "$$folder" servers; \
	cd "$$folder"; $(PYTEST) $(ARGS)

screenshot: .venv/developer servers
	$(BIN)/python -m tests.browser docs/demo.png

servers: .venv/developer
	sh tests/install-servers

.venv/bin/python:
	$(PYTHON) -m venv .venv || { rm -rf .venv; sh tests/install-servers venv && $(PYTHON) -m venv .venv; }

.venv/installed: .venv/bin/python setup.py
	$(BIN)/python -m pip install --quiet --editable '.[all]'
	touch $@

.venv/developer: .venv/installed requirements-dev.txt requirements-dev-alone.txt
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-dev-alone.txt
	touch $@

# An environment of its own, so that the developer's stays clean; without npm the contenders on Node are left out.
.venv-bench/installed: setup.py benchmarks/requirements.txt benchmarks/package.json
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --editable '.[all]' --requirement benchmarks/requirements.txt
	! command -v npm >/dev/null || npm install --prefix benchmarks --silent --no-package-lock
	touch $@

clean:
	rm -rf .venv .venv-bench benchmarks/node_modules benchmarks/package-lock.json benchmarks/results.json
	rm -rf docs/_build build dist *.egg-info .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache demo.db*
	find . -name __pycache__ -prune -exec rm -rf {} +

# make demo    serve the example app, on URL=memory:// or the one given
# make test    run every test on real servers, with branch coverage
# make lint    ruff, ruff format, mypy --strict
# make servers install the servers that the tests need and that are missing

PYTHON ?= python3
BIN := .venv/bin
URL ?= memory://
PORT ?= 8080

.PHONY: demo test lint servers clean

demo: .venv/installed
	$(BIN)/python -X dev examples/demo.py --port $(PORT) '$(URL)'

test: .venv/developer servers
	$(BIN)/pytest --cov --cov-report=term $(ARGS)

lint: .venv/developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

servers: .venv/developer
	sh tests/install-servers

.venv/bin/python:
	$(PYTHON) -m venv .venv || { rm -rf .venv; sh tests/install-servers venv && $(PYTHON) -m venv .venv; }

.venv/installed: .venv/bin/python setup.py
	$(BIN)/python -m pip install --quiet --editable '.[all]'
	touch $@

.venv/developer: .venv/installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .coverage .mypy_cache .pytest_cache .ruff_cache

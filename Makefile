# Everything a person or CI does here. `make test` and `make demo` need Python 3.10 or newer and nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?=
# Two at least: most of the tests' time is waiting for processes that they started.
PARALLEL ?= -n $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -gt 2 ] && echo $$n || echo 2) --dist worksteal
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: test check unit pythons demo soak bench docs package clean

test: check docs unit pythons  ## the checkers, and all tests

check: $(VENV)/.checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(VENV)/.checks
	$(BIN)/python -m pytest $(PARALLEL)

pythons: $(VENV)/.checks  ## the unit tests on each other supported Python that is found
	tests/other_pythons.sh
	tests/django_versions.sh

soak: $(VENV)/.checks  ## the same tests with bigger numbers
	DEFERRED_SOAK=1 $(BIN)/python -m pytest --hypothesis-profile=soak

demo: $(VENV)/.demo  ## the gallery on the local server; DEMO=--exit ends when all is done
	$(BIN)/python examples/gallery/demo.py $(DEMO)

bench: $(VENV)/.bench  ## tables of speed, other queues beside us; apt-get install redis-server for two of them
	$(BIN)/python benchmarks/import_time.py
	$(BIN)/python benchmarks/passthrough.py
	$(BIN)/python benchmarks/execution.py
	$(BIN)/python benchmarks/signing.py
	$(BIN)/python benchmarks/enqueue.py
	$(BIN)/python benchmarks/large_store.py
	$(BIN)/python benchmarks/local_queue.py

docs: $(VENV)/.docs
	$(BIN)/sphinx-build -W -q -b html docs docs/_build/html

package: $(VENV)/.checks  ## the wheel and the source archive, in dist/
	$(BIN)/python -m build -q

clean:
	rm -rf $(VENV) .venvs build dist docs/_build *.egg-info

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "deferred_middleware needs Python 3.10 or newer, and $(PYTHON) is " + sys.version.split()[0] + "; say make PYTHON=python3.12, for one")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.checks: setup.cfg pyproject.toml examples/gallery/requirements-demo.txt | $(BIN)/python .venvs/gunicorn-21.2
	$(BIN)/python -m pip install -q -e '.[checks]'
	$(BIN)/python -m pip install -q --no-deps -r examples/gallery/requirements-demo.txt
	touch $@

$(VENV)/.bench: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[benchmarks]'
	touch $@

# The last gunicorn that hands headers with underscores on, beside the one that the other tests have.
.venvs/gunicorn-21.2: | $(BIN)/python
	$(BIN)/python -m pip install -q --no-deps --target $@ gunicorn==21.2.0

$(VENV)/.docs: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[docs]'
	touch $@

$(VENV)/.demo: setup.cfg pyproject.toml examples/gallery/requirements.txt examples/gallery/requirements-demo.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[server]'
	$(BIN)/python -m pip install -q -r examples/gallery/requirements.txt
	$(BIN)/python -m pip install -q --no-deps -r examples/gallery/requirements-demo.txt
	touch $@

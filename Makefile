# Everything that you or CI do here. `make test` and `make demo` need Python 3.10 or newer and nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?=
BENCH ?=
PROCESSORS := $(shell nproc 2>/dev/null || echo 2)
# One process more, because tests often wait for the disk and for processes that they started.
PARALLEL ?= -n $$(($(PROCESSORS) + 1)) --dist worksteal
# The order of the unit tests is random, another one for each commit. For any other order: make quick SEED=123
COMMIT := $(shell git rev-parse --short=7 HEAD 2>/dev/null | cut -c1-7)
SEED ?= $(shell [ -n "$(COMMIT)" ] && printf '%d' 0x$(COMMIT) || date +%s)
SHUFFLED := --randomly-seed=$(SEED)
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help test quick check unit pythons djangos demo soak simulate mutants screenshots bench docs package release-check clean

help:  ## print this list
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

test: check docs unit  ## run all checks and all tests, on each Python that is found
	+$(MAKE) --no-print-directory -j 2 pythons djangos

quick: $(VENV)/.checks  ## run the checkers and the unit tests on one Python, in less than 90 seconds
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q $(PARALLEL) $(SHUFFLED) tests/unit

check: $(VENV)/.checks  ## run the checkers: ruff, mypy and the spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell README.rst CHANGELOG.rst CONTRIBUTING.rst docs deferred_middleware examples

unit: $(VENV)/.checks  ## run all tests on one Python
	$(BIN)/python -m pytest $(PARALLEL) $(SHUFFLED) tests/unit
	$(BIN)/python -m pytest $(PARALLEL) -p no:randomly tests/integration tests/acceptance tests/simulation tests/browser

pythons: $(VENV)/.checks  ## run the unit tests on each other supported Python that is found
	tests/other_pythons.sh

djangos: $(VENV)/.checks  ## run the tests of Django on other versions of it
	tests/django_versions.sh

mutants: $(VENV)/.mutants  ## change the code in small ways and see whether the tests notice; this takes an hour
	$(BIN)/python tests/mutants.py --write

soak: $(VENV)/.checks  ## run the same tests with bigger numbers; this takes hours
	DEFERRED_SOAK=1 $(BIN)/python -m pytest -p no:randomly --hypothesis-profile=soak -rP tests/simulation
	DEFERRED_SOAK=1 $(BIN)/python -m pytest -p no:randomly --hypothesis-profile=soak --ignore=tests/simulation

simulate: $(VENV)/.checks  ## replay one run of the simulated server and print its story: make simulate SEED=7
	$(BIN)/python -m tests.simulation $(SEED)

demo: $(VENV)/.demo  ## run the gallery on the local server; DEMO=--exit ends when all is done
	$(BIN)/python examples/gallery/demo.py $(DEMO)

screenshots: $(VENV)/.checks  ## take the pictures of the local server's page for the documentation again
	DEFERRED_SCREENSHOTS=docs/images $(BIN)/python -m pytest -p no:randomly tests/browser/test_screenshots.py

bench: $(VENV)/.bench  ## run every benchmark and write the report in docs/; two peers need redis-server; BENCH=--quick
	$(BIN)/python benchmarks/run_all.py $(BENCH)

docs: $(VENV)/.docs  ## build the documentation in docs/_build/html
	$(BIN)/sphinx-build -W -q -b html docs docs/_build/html

package: $(VENV)/.release  ## build the wheel and the source archive in dist/; two builds of a commit are equal
	$(BIN)/python release/build.py

release-check: $(VENV)/.release  ## check what a release needs: builds, wheel, types, components, workflows
	$(BIN)/python release/check.py

clean:  ## remove everything that make has made
	rm -rf $(VENV) .venvs build dist docs/_build *.egg-info

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "deferred_middleware needs Python 3.10 or newer, and $(PYTHON) is " + sys.version.split()[0] + ". Name a newer one, for example: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.checks: setup.cfg pyproject.toml examples/gallery/requirements-demo.txt | $(BIN)/python .venvs/gunicorn-21.2 .venvs/node-client
	$(BIN)/python -m pip install -q -e '.[checks]'
	$(BIN)/python -m pip install -q --no-deps -r examples/gallery/requirements-demo.txt
	touch $@

$(VENV)/.mutants: $(VENV)/.checks
	$(BIN)/python -m pip install -q 'cosmic-ray>=8.4'
	touch $@

$(VENV)/.bench: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[benchmarks]'
	touch $@

# The last gunicorn that passes on headers with underscores, beside the newer one that the other tests use.
.venvs/gunicorn-21.2: | $(BIN)/python
	$(BIN)/python -m pip install -q --no-deps --target $@ gunicorn==21.2.0

$(VENV)/.release: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[release]'
	touch $@

# Google's client of Cloud Tasks for another language, for the tests of the emulator.
.venvs/node-client:
	@if command -v npm >/dev/null; then \
	  npm install --silent --no-audit --no-fund --prefix $@ @google-cloud/tasks@7.1.0; \
	else \
	  echo "npm is missing: the tests of the emulator with Node.js will fail"; \
	fi

$(VENV)/.docs: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[docs]'
	touch $@

$(VENV)/.demo: setup.cfg pyproject.toml examples/gallery/requirements.txt examples/gallery/requirements-demo.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[server]'
	$(BIN)/python -m pip install -q -r examples/gallery/requirements.txt
	$(BIN)/python -m pip install -q --no-deps -r examples/gallery/requirements-demo.txt
	touch $@

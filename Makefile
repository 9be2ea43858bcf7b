# make run · make test · make lab · make verify; each sets up what it needs, once.
PYTHON   ?= python3
VENV     ?= .venv
PARAMS   ?=
PIP_ARGS ?=
UV       ?=
BIN      := $(VENV)/bin
INSTALL  := $(if $(UV),VIRTUAL_ENV=$(VENV) uv pip install,$(BIN)/python -m pip install --disable-pip-version-check -q)

.DEFAULT_GOAL := help
.PHONY: help setup run test lab verify kernels lint lock clean

help:  ## what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1	/' | expand -t 16

setup: $(VENV)/.done node_modules/.done  ## create the environment (Python and Node), once
	@echo "environment ready: $(VENV), node_modules"

$(VENV)/.done: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3,11) <= sys.version_info[:2] < (3,14))' \
	  || { echo "Python 3.11 to 3.13 is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "· Python environment in $(VENV) (a few minutes, once)"
	@test -x $(BIN)/python || $(if $(UV),uv venv -q --python $(PYTHON) $(VENV),$(PYTHON) -m venv $(VENV))
	@$(INSTALL) $(PIP_ARGS) -r requirements.lock
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

node_modules/.done: package-lock.json package.json
	@if command -v npm >/dev/null; then \
	  echo "· Node packages"; npm ci --loglevel=error >/dev/null && touch $@; \
	else \
	  echo "· no npm found: stages 09 and 10 will be skipped (install Node 20 or newer: https://nodejs.org)"; \
	fi

run: setup  ## the whole series on the embedded Gemma 3 270M: runs/quickstart/11_report/report.html
	$(BIN)/python -m fgtune_helpers run $(addprefix --params ,$(PARAMS))

test: setup  ## unit tests, notebook lint, nbval, the series on a tiny model
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest -p no:cacheprovider --nbval-lax --nbval-sanitize-with tests/nbval_sanitize.cfg tests/golden

lab: setup  ## JupyterLab on the first notebook
	$(BIN)/jupyter lab notebooks/00_setup.ipynb

verify: export FGTUNE_PARAMS =
verify: setup  ## the series on the real model, nbval on the recorded notebooks (which runs it again), all cases on the page, an audit
	$(BIN)/python -m fgtune_helpers run --params params/quickstart.yaml
	$(BIN)/python -m pytest -p no:cacheprovider --nbval-lax --nbval-cell-timeout=7200 \
	  --nbval-sanitize-with tests/nbval_sanitize.cfg --ignore notebooks/01b_generate.ipynb notebooks
	$(BIN)/python benchmarks/browser.py --questions 0 --cases 48
	FGTUNE_ENGINES=1 $(BIN)/python -m pytest tests/test_engines.py
	$(BIN)/python -m fgtune_helpers audit runs/quickstart

kernels: setup  ## compile the page's kernels (web/kernels) anew, with clang from PyPI: the same bytes as are committed
	@$(INSTALL) --no-build-isolation -e ".[kernels]"
	$(BIN)/python web/kernels/build.py

lint: setup  ## ruff
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

lock:  ## write requirements.lock from pyproject.toml (needs uv); torch's CUDA packages come with torch where it has them
	uv pip compile -q pyproject.toml --extra dev --universal --python-version 3.11 --no-annotate --no-header \
	  | grep -vE '^(nvidia-|cuda-|triton==)' > requirements.lock

clean:  ## remove runs/ and caches, keep the environment
	rm -rf runs build *.egg-info .pytest_cache .ruff_cache

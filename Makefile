# Two commands on a fresh machine with Python 3.11: `make demo` and `make test`.
# `make chroma` makes a second environment that has Chroma too, `make test-chroma` runs its tests there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CHROMA := .venv-chroma
DOCS := .venv-docs
PIP := -m pip install -q --disable-pip-version-check

.PHONY: env boltz demo test lint bench docs chroma test-chroma clean

env: $(VENV)/.ready

# torch by its exact version first: a range resolves to a build with gigabytes of CUDA packages
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) -c constraints.txt torch==2.13.0
	$(BIN)/python $(PIP) -c constraints.txt -e '.[test,lint,report,slurm,browser]'
	touch $@

# The released package boltz, for the priors boltz1 and boltz2 and the tests that compare with it.
boltz: $(VENV)/.boltz

$(VENV)/.boltz: $(VENV)/.ready
	$(BIN)/python $(PIP) -c constraints.txt -e '.[boltz]'
	touch $@

demo: env
	$(BIN)/densemble demo --out demo --force

# That a report works in a browser is tested where a Chromium is (Debian: apt-get install chromium).
test: env boltz
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: env boltz
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Figures of every benchmark, the roofline of the machine first in each, and as JSON in runs/bench: for a quiet
# machine, some five minutes (docs/speed.md). On a GPU: benchmarks/forward.py --device cuda.
BENCH := runs/bench

bench: env
	mkdir -p $(BENCH)
	for case in loop fab pgp ribosome; do \
		$(BIN)/python benchmarks/forward.py --case $$case --json $(BENCH)/forward-$$case.json || exit 1; \
	done
	$(BIN)/python benchmarks/forward.py --growth $(BENCH)/growth.png
	for script in benchmarks/bench_*.py; do \
		$(BIN)/python $$script --json $(BENCH)/$$(basename $$script .py).json || exit 1; \
	done

# The documentation site, in an environment of its own without torch: the API is read from the source.
# A warning (a broken link, a page that no menu names) is an error.
docs: $(DOCS)/.ready
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

$(DOCS)/.ready: Makefile
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python $(PIP) mkdocs==1.6.1 mkdocs-material==9.8.2 mkdocstrings==1.0.8 mkdocstrings-python==2.0.11 ruff==0.14.6
	touch $@

chroma: $(CHROMA)/.ready

# generate-chroma asks for scikit-learn 1.1.2 and transformers 4.24, which it does not need here, and nglview
# for JupyterLab: both without dependencies, and the extra `chroma` has what they import
$(CHROMA)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(CHROMA)
	$(CHROMA)/bin/python $(PIP) -c constraints.txt torch==2.13.0
	$(CHROMA)/bin/python $(PIP) -c constraints.txt -e '.[test,report,slurm,chroma]'
	$(CHROMA)/bin/python $(PIP) --no-deps generate-chroma==1.0.0 nglview==4.0.1
	$(CHROMA)/bin/python -c 'import chroma'
	touch $@

test-chroma: chroma
	$(CHROMA)/bin/python -m pytest -n 2 \
		$(shell find tests -name 'test_chroma_*.py') tests/unit/guidance/test_equation_4.py

clean:
	rm -rf $(VENV) $(CHROMA) $(DOCS) build dist demo

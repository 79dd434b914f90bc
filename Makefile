# Two commands on a fresh machine with Python 3.11: `make demo` and `make test`.
# `make chroma` makes a second environment that has Chroma too, `make test-chroma` runs its tests there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CHROMA := .venv-chroma
PIP := -m pip install -q --disable-pip-version-check

.PHONY: env boltz demo test lint bench chroma test-chroma clean

env: $(VENV)/.ready

# torch by its exact version first: a range resolves to a build with gigabytes of CUDA packages
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) -c constraints.txt torch==2.13.0
	$(BIN)/python $(PIP) -c constraints.txt -e '.[test,lint]'
	touch $@

# The released package boltz, for the priors boltz1 and boltz2 and the tests that compare with it.
boltz: $(VENV)/.boltz

$(VENV)/.boltz: $(VENV)/.ready
	$(BIN)/python $(PIP) -c constraints.txt -e '.[boltz]'
	touch $@

demo: env
	$(BIN)/densemble demo --out demo --force

test: env boltz
	$(BIN)/python -m pytest -n 2

lint: env boltz
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: env
	for case in loop fab; do $(BIN)/python benchmarks/forward.py --case $$case --json forward-$$case.json || exit 1; done
	for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

chroma: $(CHROMA)/.ready

# generate-chroma asks for scikit-learn 1.1.2 and transformers 4.24, which it does not need here, and nglview
# for JupyterLab: both without dependencies, and the extra `chroma` has what they import
$(CHROMA)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(CHROMA)
	$(CHROMA)/bin/python $(PIP) -c constraints.txt torch==2.13.0
	$(CHROMA)/bin/python $(PIP) -c constraints.txt -e '.[test,chroma]'
	$(CHROMA)/bin/python $(PIP) --no-deps generate-chroma==1.0.0 nglview==4.0.1
	$(CHROMA)/bin/python -c 'import chroma'
	touch $@

test-chroma: chroma
	$(CHROMA)/bin/python -m pytest -n 2 \
		$(shell find tests -name 'test_chroma_*.py') tests/unit/guidance/test_equation_4.py

clean:
	rm -rf $(VENV) $(CHROMA) build dist demo

# Two commands on a fresh machine with Python 3.11: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: env boltz demo test lint bench clean

env: $(VENV)/.ready

# torch by its exact version first: a range resolves to a build with gigabytes of CUDA packages
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	touch $@

# The released package boltz, for the priors boltz1 and boltz2 and the tests that compare with it.
boltz: $(VENV)/.boltz

$(VENV)/.boltz: $(VENV)/.ready
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[boltz]'
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
	for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) build dist demo

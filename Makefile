# `make demo` and `make test` do all of their set-up in .venv; nothing else is touched.

# The first of these that is there and that capsprune supports.
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)

VENV := .venv
BIN := $(VENV)/bin
# Two files of tests at a time, with one thread each: more would gain little.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

.PHONY: demo test slow lint clean

demo: $(VENV)/installed
	$(BIN)/capsprune run recipes/quickstart.yaml
	$(BIN)/capsprune report quickstart

test: $(VENV)/installed-dev
	$(PYTEST) -m "not slow"

slow: $(VENV)/installed-dev
	$(PYTEST) -m slow

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt tools/build_hook.py $(wildcard capsprune/native/src/*)
	@test -n "$(PYTHON)" || { echo "capsprune needs Python 3.10, 3.11 or 3.12: install one, or give PYTHON=/path/to/python." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# make simulate   three made-up hospitals, whole way through; ends by printing where the report is
# make test       the tests
# make check      ruff, mypy --strict, import-linter

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: simulate test check install clean
.DEFAULT_GOAL := simulate

simulate: install
	$(BIN)/fedsynth simulate configs/demo.yaml

test: install
	$(BIN)/pytest

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(VENV)/installed

# torch first and alone: its pinned version then satisfies everything that asks for torch
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "fedsynth needs Python 3.11, 3.12 or 3.13; set PYTHON=python3.x"; exit 1; }
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "$$(grep -E '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable . --group dev
	touch $@

clean:
	rm -rf $(VENV) out

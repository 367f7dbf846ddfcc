# make simulate   three made-up hospitals, whole way through; ends by printing where the report is
# make test       the tests
# make test-fast  those that are quick, in less than two minutes
# make check      ruff, mypy --strict, import-linter
# make docs       the documentation, into out/site; its pages of settings, commands and functions are made from the program first
# make lock       constraints.txt anew after a change of pyproject.toml: keeps the versions that are there, adds what is missing

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: simulate test test-fast check docs install lock clean
.DEFAULT_GOAL := simulate

simulate: install
	$(BIN)/fedsynth simulate configs/demo.yaml

# The tests of a file stay together: they share what is expensive. As many files at once as there are cores, the longest first
SIDE_BY_SIDE := -n auto --dist loadfile --no-loadscope-reorder

test: install
	$(BIN)/pytest $(SIDE_BY_SIDE)

test-fast: install
	$(BIN)/pytest -m "not slow" $(SIDE_BY_SIDE)

docs: install
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy docs/generate.py
	$(BIN)/lint-imports

install: $(VENV)/installed

# Whatever is fetched must have a hash that stands in constraints.txt. Except torch, which goes first and alone: machines have files of
# their own of its version (for their processor, or without CUDA). The images have no such exception (client/Dockerfile)
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "fedsynth needs Python 3.11, 3.12 or 3.13; set PYTHON=python3.x"; exit 1; }
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	sed -n '/^pip==/,/[^\\]$$/p' constraints.txt > $(VENV)/pip.txt
	$(BIN)/pip install --quiet --require-hashes --requirement $(VENV)/pip.txt
	$(BIN)/pip install --quiet --no-deps "$$(grep -oE '^torch==[^ ]+' constraints.txt)"
	$(BIN)/pip install --quiet --no-require-hashes --constraint constraints.txt --build-constraint constraints.txt \
	  --editable . --group dev --group docs
	touch $@

lock: install
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	  --custom-compile-command "make lock" --all-extras --group dev --group docs --group build --output-file constraints.txt pyproject.toml

clean:
	rm -rf $(VENV) out

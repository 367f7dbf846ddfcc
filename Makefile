# make simulate   three made-up hospitals, whole way through; ends by printing where the report is
# make test       the tests
# make check      ruff, mypy --strict, import-linter
# make lock       constraints.txt anew after a change of pyproject.toml: keeps the versions that are there, adds what is missing

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: simulate test check install lock clean
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
	  --editable . --group dev
	touch $@

lock: install
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	  --custom-compile-command "make lock" --all-extras --group dev --group build --output-file constraints.txt pyproject.toml

clean:
	rm -rf $(VENV) out

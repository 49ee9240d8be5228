# Two commands need nothing but Python 3.11 and make: `make demo` and `make test`.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin

# A strict editable install links each file, so it is made again when files come or go.
FILES := $(shell find . -name '*.py' -o -name '*.yaml' -o -name 'page.*' -o -path './client/*/*/*' -o -path './strategies/*/*' | grep -v '^./\(\.\|build\)\|__pycache__' | sort | cksum | cut -d' ' -f1)
STAMP := $(VENV)/installed-$(FILES)

.PHONY: demo test test-long check reproduce install clean

demo: install  ## Run the demo federation; says where the report is.
	$(BIN)/fedshift demo

test: install  ## Run the whole test suite.
	$(BIN)/python -m pytest -m "not slow and not long" -n 2 --dist loadfile

test-long: install  ## Thousands of mutated messages of every kind, through the engine's own path.
	$(BIN)/python -m pytest -m long -n 2 --dist loadfile

check: install  ## Lint, format, types, allowed imports.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p fedshift
	$(BIN)/lint-imports

reproduce: install  ## Run every paper's comparison, three seeds, and check the promised figures.
	$(BIN)/python -m pytest -m slow

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' --config-settings editable_mode=strict
	rm -f $(VENV)/installed-*
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info

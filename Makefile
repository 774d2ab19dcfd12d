# `make try` sets everything up and ends in an answer; `make check` is what people and CI run.
# Nothing outside .venv is written, and `check` changes no file of the project.

VENV   := .venv
PYTHON := $(VENV)/bin/python
# llama.cpp's RPC backend adds seconds to the build and lets tests have a second device.
export CMAKE_ARGS ?= -DGGML_RPC=on

.PHONY: try check lint types test slow coverage format manual clean

try: $(VENV)/.installed
	$(VENV)/bin/qwq ask --model tiny "What is 47 + 86?"

check: lint types test

lint: $(VENV)/.dev
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .

# As if on each system in turn: a call that Windows or macOS lacks is an error here as well.
types: $(VENV)/.dev
	for system in linux darwin win32; do \
	  $(PYTHON) -m mypy --platform $$system --cache-dir .mypy_cache/$$system || exit 1; done

test: $(VENV)/.dev
	$(PYTHON) -m pytest

slow: $(VENV)/.dev
	$(PYTHON) -m pytest -m slow

coverage: $(VENV)/.dev
	$(PYTHON) -m coverage run -m pytest
	$(PYTHON) -m coverage combine
	$(PYTHON) -m coverage report --show-missing --skip-covered

format: $(VENV)/.dev
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

manual: $(VENV)/.dev
	$(PYTHON) -m tests.manual

clean:
	rm -rf $(VENV) dist build .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The engine is compiled here, which takes a few minutes once.
$(VENV)/.installed: pyproject.toml
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PYTHON) -m pip install --quiet --editable '.[dev]'
	touch $@

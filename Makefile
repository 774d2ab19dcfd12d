# One command is what people and CI run; it changes no file.
PYTHON ?= python3

.PHONY: check format lint types test slow

check: lint types test

lint:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .

types:
	$(PYTHON) -m mypy

test:
	$(PYTHON) -m pytest

slow:
	$(PYTHON) -m pytest -m slow

format:
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

# What a checkout can do; `make` alone prints the list. The first target that needs Python makes .venv.

BIN := .venv/bin
INSTALLED := .venv/.installed
EXTRAS ?= dev
WORKERS ?= 2
DIGITS := build/digits

# OpenMP threads that spin while they wait cost a busy machine many times what they gain.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help demo test lint size docs bench clean
.DEFAULT_GOAL := help

help: ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s %s\n", $$1, $$2 }' Makefile

demo: $(INSTALLED) ## a model for 1,797 handwritten digits, from pictures to report, in about three minutes
	$(BIN)/python examples/digits.py $(DIGITS)
	$(BIN)/trimtab fit $(DIGITS) --target "accuracy>=0.97, p95<=1ms, size<=100KB" --budget 3m

test: $(INSTALLED) ## the default tests; WORKERS=1 for one process, ARGS="-m slow" for the long ones
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

lint: $(INSTALLED) ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

size: $(INSTALLED) ## how long the functions and files are
	$(BIN)/python -m tools.size

docs: $(INSTALLED) ## the pages, into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "build/site/index.html"

bench: $(INSTALLED) ## every measurement in benchmarks/, each prints a table and writes one JSON
	@for script in $$(grep -l __main__ benchmarks/*.py); do echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

clean: ## remove what make made (.venv, build, caches), never runs/
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@PYTHON="$(PYTHON)" sh tools/install.sh $(EXTRAS)
	@touch $@

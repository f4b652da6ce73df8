# PYTHON is the interpreter that .venv is made from; 3.11 or 3.12, or one that finds such a one on PATH.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test lint format clean

help: ## lists the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

$(READY): pyproject.toml launch/environment.py
	@$(PYTHON) launch/environment.py

demo: $(READY) ## sets up, then makes clicks, prepares, plans, trains on 2 ranks and evaluates
	$(BIN)/torchx run -s local_cwd dist.ddp -j 1x2 launch/train.py --config launch/configs/demo.toml
	@echo; ls -t runs/*/result.json | head -n 1 | xargs $(BIN)/dlrm-dist result

test: lint ## sets up, then lint, types and tests
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: $(READY) ## style, format and types, without the tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(READY) ## formats the code and mends what ruff can mend
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

clean: ## removes .venv and the tools' caches; data/, runs/ and logs/ stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

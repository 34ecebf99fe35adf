# make setup | demo | test | test-slow | certs | lint | format | docs | bench | constraints | clean
# Everything is set up on the first call, in .venv; it needs only Python 3.11 to 3.13 and make.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo $$p && break; done)
# faiss-cpu and faiss-gpu are one module: a machine has one of them
FAISS ?= $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
BIN := .venv/bin
READY := .venv/.ready-$(FAISS)
UV := $(BIN)/uv pip

setup: $(READY)

demo: $(READY)
	$(BIN)/fedpatchcore demo

test: $(READY)
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-slow: $(READY)
	$(BIN)/python -m pytest -m "slow and not gpu"

# keys and certificates of a deployment: make certs HOSTS="server.example 10.0.0.1" NODES=3
NODES ?= 2
certs: $(READY)
	@test -n "$(HOSTS)" || { echo 'name the SuperLink: make certs HOSTS="server.example 10.0.0.1"'; exit 1; }
	$(BIN)/fedpatchcore certs $(HOSTS) --nodes $(NODES)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# the documentation site, into site/; to read it with its search: python -m http.server --directory site
docs: $(READY)
	$(UV) install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[$(FAISS),dev,docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

# on this machine's CPU, beside anomalib's selection, which the extra brings; takes about a quarter of an hour
bench: $(READY)
	$(UV) install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[$(FAISS),dev,bench]'
	$(BIN)/python benchmarks/coreset.py --rows 50000 --dim 512
	$(BIN)/python benchmarks/coreset.py --rows 31000 --dim 1536
	$(BIN)/python benchmarks/scoring.py

constraints: $(READY)
	$(UV) compile --universal --python-version 3.11 --extra cpu --extra gpu --extra dev --extra bench --extra docs \
		--upgrade --quiet --no-header --no-annotate \
		pyproject.toml --output-file constraints.txt
	touch $(READY)

clean:
	rm -rf .venv site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11, 3.12 or 3.13 was found: name one by PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(UV) install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[$(FAISS),dev]'
	@rm -f .venv/.ready-*
	@touch $@

.PHONY: setup demo test test-slow certs lint format docs bench constraints clean

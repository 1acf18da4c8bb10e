# Two commands that need only Python and make:
#   make demo      the full pipeline on the built-in world
#   make test      the fast tests
# Also: make check (style and types), make test-all (slow tests too), make proof (the measurements of docs/results again,
# hours), make docs (the site, site/index.html), make lock (pin the newest versions that pyproject.toml allows),
# make clean (remove the virtual environment and the site).
# Another Python: make test PYTHON=python3.12

PYTHON ?= python3
# Python compiles modules on import; compiling every package in full takes a minute
PIP = .venv/bin/python -m pip install --disable-pip-version-check --no-compile
COMPILE = uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-package torch \
	--config-file requirements.uv.toml -c constraints.txt --custom-compile-command "make lock"
# one process per core; the tests of a file stay together
PYTEST = OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n logical --maxprocesses=8 --dist=loadscope --no-loadscope-reorder

# the many processes of a run and of the tests share the bytecode that the first one compiles
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all check proof docs lock clean

demo: .venv/installed
	.venv/bin/python train.py stage=all

test: .venv/tested
	$(PYTEST) -m "not slow"

test-all: .venv/tested
	$(PYTEST)

check: .venv/tested
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# MODEL=FOLDER: the measurements on a real model as well
proof: .venv/installed
	OMP_NUM_THREADS=1 .venv/bin/python benchmarks/proof.py $(if $(MODEL),--model $(MODEL))

docs: .venv/documented
	.venv/bin/codespell
	.venv/bin/python -m sphinx --fail-on-warning --keep-going --quiet -c docs . site

# needs uv; requirements-dev.lock has what the tests need in addition to requirements.lock
lock:
	$(COMPILE) --upgrade --extra build --output-file requirements.lock pyproject.toml
	$(COMPILE) --upgrade -c requirements.lock --extra dev \
		$$(sed -n 's/^\([a-z0-9._-]*\)==.*/--no-emit-package \1/p' requirements.lock | sort -u) \
		--output-file requirements-dev.lock pyproject.toml

clean:
	rm -rf .venv site docs/api

# every file is checked against its hash except torch, whose CPU and CUDA builds are different files
.venv/installed: pyproject.toml requirements.lock constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v < (3, 14) else \
	f"Gradus needs Python 3.11 to 3.13, got {v[0]}.{v[1]} from $(PYTHON). Try: make $(MAKECMDGOALS) PYTHON=python3.11")'
	@echo "Setting up .venv, once: downloads of a few hundred MB, one to three minutes. pip reports each package."
	@$(PYTHON) -m venv .venv
	@echo "[1/3] $$(grep -c '^[a-z0-9].*==' requirements.lock) packages of requirements.lock; at the end, pip unpacks them silently"
	@$(PIP) --require-hashes --no-deps -r requirements.lock
	@echo "[2/3] torch, the largest"
	@$(PIP) -c constraints.txt torch
	@echo "[3/3] Gradus"
	@$(PIP) --quiet --no-deps --no-build-isolation -e .
	@touch $@

.venv/tested: .venv/installed requirements-dev.lock
	@echo "Installing the $$(grep -c '^[a-z0-9].*==' requirements-dev.lock) packages of requirements-dev.lock, which the tests need"
	@$(PIP) --require-hashes --no-deps -r requirements-dev.lock
	@touch $@

.venv/documented: .venv/installed
	@$(PIP) --quiet --no-build-isolation -c constraints.txt -e '.[docs]'
	@touch $@

# Two commands from nothing but Python and make:
#   make demo      the whole way on the built-in world
#   make test      the tests that take seconds
# Also: make test-all (slow ones too), make clean (the virtual environment). Another Python: make test PYTHON=python3.12

PYTHON ?= python3
# a core for each of several processes, which take the tests of a file together
PYTEST = OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n logical --maxprocesses=8 --dist=loadscope --no-loadscope-reorder

.PHONY: demo test test-all clean

demo: .venv/installed
	.venv/bin/python train.py stage=all

test: .venv/installed
	$(PYTEST) -m "not slow"

test-all: .venv/installed
	$(PYTEST)

clean:
	rm -rf .venv

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v < (3, 14) else \
	f"Gradus needs Python 3.11 to 3.13, got {v[0]}.{v[1]} from $(PYTHON). Try: make $(MAKECMDGOALS) PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

# The developer's commands; PYTHON=... picks the interpreter.
PYTHON ?= python
PYTEST = $(PYTHON) -m pytest

.PHONY: lint format test-quick test test-gpu test-slurm

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

test-quick:  # under a minute on two cores
	$(PYTEST) -n 2 --dist loadfile -m "not (ranks or slurm or compile or browser or gpu or slow)"

test:  # everything that this machine can run
	$(PYTEST) -n 2 --dist loadfile

test-gpu:
	TEST_DEVICE=cuda $(PYTEST) tests/gpu tests/optim/adafisher/test_triton.py

test-slurm:  # installs a test cluster of Debian packages; as root
	tests/slurm/slurm-cluster install
	SLURM_TESTS=required $(PYTEST) tests/slurm

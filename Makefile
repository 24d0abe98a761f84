# Needs Python 3.11 or newer; the network only the first time.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet --constraint $(CONSTRAINTS)

.PHONY: demo test test-all test-kernels fuzz lint types clean

demo: $(VENV)/.installed
	$(VENV)/bin/python examples/digits_vae.py $(ARGS)

test: $(VENV)/.installed
	$(VENV)/bin/python -m pytest -n auto $(ARGS)

test-all: $(VENV)/.installed $(VENV)/.lightning-installed
	$(VENV)/bin/python -m pytest -n auto -m "slow or not slow" $(ARGS)

# Random arguments and calls, N of them: always the same ones, or with SEED=... others.
fuzz: $(VENV)/.installed
	$(VENV)/bin/python -m pytest -n auto tests/fuzz --fuzz $(or $(N),100000) \
	    $(if $(SEED),--hypothesis-seed $(SEED)) $(ARGS)

# The GPU kernels, in Triton's interpreter.
test-kernels: $(VENV)/.kernels-installed
	TRITON_INTERPRET=1 $(VENV)/bin/python -m pytest -n auto tests/kernels/triton $(ARGS)

lint: $(VENV)/.lint-installed
	$(VENV)/bin/python -m ruff check
	$(VENV)/bin/python -m ruff format --check

types: $(VENV)/.lint-installed
	$(VENV)/bin/python -m mypy

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) --editable ".[examples]" --group test
	touch $@

$(VENV)/.lightning-installed: $(VENV)/.installed
	$(PIP) --group lightning
	touch $@

$(VENV)/.kernels-installed: $(VENV)/.installed
	$(PIP) --group kernels
	touch $@

$(VENV)/.lint-installed: $(VENV)/.installed
	$(PIP) --group lint
	touch $@

clean:
	rm -rf $(VENV)

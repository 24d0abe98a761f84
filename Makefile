# Needs Python 3.11 or newer; the network only the first time.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet --constraint $(CONSTRAINTS)

.PHONY: demo test test-all test-kernels fuzz docs test-docs lint types dist clean

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

# The site, in docs/_build/html. Needs npm, for MathJax.
docs: $(VENV)/.docs-installed
	rm -rf docs/reference/generated  # pages of names that are gone
	$(VENV)/bin/python -m sphinx --fail-on-warning --keep-going --nitpicky docs docs/_build/html

# Every page of it in a browser, Debian's chromium.
test-docs: docs
	$(VENV)/bin/python -m pytest docs/test_site.py $(ARGS)

lint: $(VENV)/.lint-installed
	$(VENV)/bin/python -m ruff check
	$(VENV)/bin/python -m ruff format --check

types: $(VENV)/.lint-installed
	$(VENV)/bin/python -m mypy

# The wheel and the sdist, in dist.
dist: $(VENV)/.release-installed
	rm -rf dist
	$(VENV)/bin/python -m build --no-isolation
	$(VENV)/bin/python -m twine check --strict dist/*
	$(VENV)/bin/python -m pytest tests/archives.py $(ARGS)

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

$(VENV)/.docs-installed: $(VENV)/.installed
	$(PIP) --group docs
	npm install --silent --no-audit --no-fund --prefix $(VENV) mathjax@3.2.2
	touch $@

$(VENV)/.lint-installed: $(VENV)/.installed
	$(PIP) --group lint
	touch $@

$(VENV)/.release-installed: $(VENV)/.installed
	$(PIP) --group release
	touch $@

clean:
	rm -rf $(VENV)

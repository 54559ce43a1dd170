# Two commands for a clean clone: `make demo` and `make test`. Each makes what it needs, and may be run again.
# PYTHON: the interpreter to start from. A Python that already has torch lends it to the environments made here.

PYTHON ?= python3
VENV := .venv
DEMO := .venv-demo
# a torch that is there is used as it is; otherwise the pinned CPU build keeps a 3 GB CUDA download away
HAS_TORCH := $(shell $(PYTHON) -c "import importlib.util as u; print(u.find_spec('torch') is not None)" 2>/dev/null)
ifeq ($(HAS_TORCH),True)
VENV_FLAGS := --system-site-packages
PIP_FLAGS :=
else
VENV_FLAGS :=
PIP_FLAGS := -c constraints-cpu.txt
endif

.PHONY: demo test lint format gpu clean help

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

demo: $(DEMO)/installed ## scan a real training job on this machine; prints the verdict and where the report is
	$(DEMO)/bin/mpdiag scan examples/digits_cnn.py --out mpdiag-demo
	@echo "mpdiag is installed in $(DEMO): run $(DEMO)/bin/mpdiag scan YOUR_FILE.py, or first . $(DEMO)/bin/activate"

test: $(VENV)/installed lint ## lint, types and the whole test suite
	$(VENV)/bin/python -m pytest -n auto

lint: $(VENV)/installed ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/installed ## let ruff rewrite what it can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

gpu: ## the tests that need a CUDA device, with the Python at hand
	$(PYTHON) -m pytest tests/gpu -m gpu -q

clean: ## remove what the commands above made
	rm -rf $(VENV) $(DEMO) mpdiag-demo .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/installed: pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv --clear $(VENV_FLAGS) $(VENV)
	$(VENV)/bin/python -m pip install -q $(PIP_FLAGS) -e '.[dev]'
	touch $@

$(DEMO)/installed: pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv --clear $(VENV_FLAGS) $(DEMO)
	$(DEMO)/bin/python -m pip install -q $(PIP_FLAGS) '.[examples]'
	touch $@

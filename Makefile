# The one place that knows how to set a checkout up. Needs Python 3.11 or newer, and nothing else.
#
#   make run [ARGS="seed=1 device=cuda"]    the demonstration run
#   make test [ARGS="-k kv_cache"]          the tests, as many at once as there are cores; one by one with ARGS="-n 0"
#   make test-numeric                       those that compare numbers, as another machine might round them
#   make lint                               style, and types of the public names, as CI runs them
#   make docs                               the documentation as a site, in site/
#   make clean                              remove .venv and caches; outputs/ stays

# Tried in this order; name another with `make PYTHON=/path/to/python3.12 run`.
PYTHON ?= python3.11 python3

VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
PIP := $(VENV_PYTHON) -m pip --disable-pip-version-check --no-input -qq
# A copy of the requirements.txt that was installed, taken before the install and given its name only after it,
# so an interrupted install leaves no stamp and an edit made meanwhile is newer than the stamp.
STAMP := $(VENV)/requirements.installed
CAN_MAKE_VENV := import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))
USABLE_VENV := import sys, pip; sys.exit(sys.version_info < (3, 11))

.PHONY: run test test-numeric lint docs setup clean
.DEFAULT_GOAL := run

run: $(STAMP)
	$(VENV_PYTHON) run.py -m model=magi method=flowcache_fast,flowcast_fast $(ARGS)

# The models in the tests are tiny: more than one thread each only slows them down, more tests at once do not.
PYTEST := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=PASSIVE $(VENV_PYTHON) -m pytest -n auto \
	--maxprocesses 8 --dist worksteal

test: $(STAMP)
	$(PYTEST) $(ARGS)

# MKL's and PyTorch's kernels for any CPU, and last bits that depend on shapes (tests/rounding.py). What is left out
# compares no numbers, or runs programs of its own, which round as ever.
NO_NUMBERS := tests/experiments tests/models/test_fuzz.py \
	$(wildcard tests/models/test_*_flops.py tests/eval/test_caption_score*.py) \
	$(patsubst %,tests/eval/test_%.py,metric_memory vbench video_io) $(patsubst %,tests/test_%.py,checkpoints console \
	contributing docs encodings guide habits hub layers library methods notebooks releases setup told wheel)

test-numeric: $(STAMP)
	MKL_CBWR=COMPATIBLE ATEN_CPU_CAPABILITY=default FLOWCACHE_TEST_EXAMPLES=15 $(PYTEST) -p tests.rounding -m 'not slow' \
		$(addprefix --ignore=,$(NO_NUMBERS)) tests $(ARGS)

lint: $(STAMP)
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy

docs: $(STAMP)
	@$(PIP) install -r requirements-docs.txt
	NO_MKDOCS_2_WARNING=1 $(VENV_PYTHON) -m mkdocs build --strict

setup: $(STAMP)

$(STAMP): requirements.txt
	@rm -f $@
	@if ! $(VENV_PYTHON) -c '$(USABLE_VENV)' 2>/dev/null; then \
		python=$$(for p in $(PYTHON); do $$p -c '$(CAN_MAKE_VENV)' 2>/dev/null && echo $$p && break; done); \
		if [ -z "$$python" ]; then \
			echo "error: Python 3.11 or newer with its venv module is needed, and none of these is: $(PYTHON)." >&2; \
			echo "       Install it (Debian: python3.11 and python3.11-venv), or name one: make PYTHON=/path/to/python3.11" >&2; \
			exit 1; \
		fi; \
		$$python -m venv --clear $(VENV); \
	fi
	@cp requirements.txt $@.part
	@echo "setting up $(VENV): 1/2 torch (about 1 minute and 1 GB; more with CUDA)"
	@$(PIP) install "$$(grep '^torch==' $@.part)"
	@echo "setting up $(VENV): 2/2 the other packages (about 2 minutes and 1 GB)"
	@$(PIP) install -r $@.part
	@$(VENV_PYTHON) -m pip check
	@mv $@.part $@

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

# Everything a newcomer needs: `make demo` and `make test` do all set-up on a machine with only Python 3.11+, make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export NIGHTMILL_HOME ?= $(CURDIR)/var
TEST_PROCESSES ?= 2

.DEFAULT_GOAL := help
.PHONY: help install demo test test-long check bench parity chaos chaos-train up down clean audit sbom

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(STAMP)  ## virtual environment, pinned packages, Java, start-up archives

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] < (3, 14) else "Python %s: Nightmill wants 3.11 to 3.13; set PYTHON=python3.11" % sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dev]'
	$(BIN)/python -m compileall -q flows tasks spark_jobs training
	$(BIN)/nightmill setup
	@touch $@

demo: $(STAMP)  ## the whole nightly on the documentation this installation carries (about two minutes)
	@$(BIN)/nightmill run demo --json

# The repetition kernel first, in a process of its own: three times it died in a worker that had run hundreds of other tests before,
# and such a crash ends the whole run. Then what runs Spark, then the rest.
KERNEL_TESTS := tests/spark_jobs/test_quality_rules.py tests/spark_jobs/test_repetition_rules.py
test: $(STAMP)  ## all tests but seven long ones (what .ci/run calls)
	$(BIN)/python -m pytest $(KERNEL_TESTS)
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder --durations 25 -m "not long" tests/spark_jobs \
		$(KERNEL_TESTS:%=--ignore %)
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder --durations 25 -m "not long" --ignore tests/spark_jobs

test-long: $(STAMP)  ## the longest tests, which `make test` leaves out to end within 40 minutes on two cores
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --durations 25 -m long

check: $(STAMP)  ## format, lint, types, import direction, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

audit: $(STAMP)  ## known vulnerabilities of the pinned packages (needs PyPI's advisories, says so where it has none)
	@$(BIN)/python .ci/audit.py

sbom: $(STAMP)  ## bill of materials, CycloneDX 1.6, var/sbom.cdx.json
	@$(BIN)/python .ci/sbom.py $(NIGHTMILL_HOME)/sbom.cdx.json

bench: $(STAMP)  ## the benchmark scripts of this repository
	$(BIN)/python -m benchmarks.demo

parity: $(STAMP)  ## every way to share training against one rank, in float64; writes the table in README.md
	$(BIN)/python -m benchmarks.parity

chaos: $(STAMP)  ## every step of a tiny night killed at every moment, and run again: the same outputs, nothing left
	$(BIN)/python -m benchmarks.chaos

chaos-train: $(STAMP)  ## a rank of a training killed at each moment, started again; writes the table in docs/training.md
	$(BIN)/python -m benchmarks.chaos_train

up: $(STAMP)  ## Prefect UI, MLflow UI, workers, deployments
	@$(BIN)/nightmill up

down: $(STAMP)  ## stop what `up` started
	@$(BIN)/nightmill down

clean:  ## remove what runs made (outputs, databases, logs)
	rm -rf $(NIGHTMILL_HOME)

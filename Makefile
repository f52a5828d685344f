# `make demo` and `make test` work on a fresh machine: each first makes .venv with the pinned versions, once.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= $(shell $(PYTHON) -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')
BIN := $(VENV)/bin
# What is imported is compiled then; most of what is installed here never is.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-compile --constraint constraints.txt
PINS := pyproject.toml runtime/pyproject.toml hatch_build.py constraints.txt
# TensorRT-RTX builds engines without a GPU, for tests alone: NVIDIA's libraries are never passed on. Linux on x86-64.
RTX := $(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),onnxruntime-ep-nv-tensorrt-rtx-cu13 tensorrt-rtx-cu13-bindings)

# Everything runs from local files; nothing should ask a model hub, and workers share the cores between them.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# Hundreds of processes import torch, and compile it each time where Python may not keep what it compiled.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-readers test-vllm test-label-studio test-x-anylabeling fuzz check docs install install-test clean

demo: install ## train, merge, calibrate, export, run and compare the tiny model; writes runs/demo
	$(BIN)/edgetune demo $(ARGS)

test: install-test ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal $(ARGS)

test-readers: install-test ## other engines load our bundles and answer from them; their environments go to .venv-readers
	$(BIN)/python benchmarks/readers/run_readers.py --work runs/readers --environments .venv-readers $(ARGS)

test-vllm: install-test ## our server before a real vllm serve, whose environment goes to .venv-readers
	$(BIN)/python benchmarks/readers/serve_vllm.py --work runs/vllm --environments .venv-readers $(ARGS)

test-label-studio: install-test ## our server behind a real Label Studio, whose environment goes to .venv-readers
	$(BIN)/python benchmarks/readers/serve_label_studio.py --work runs/label-studio --environments .venv-readers $(ARGS)

test-x-anylabeling: install-test ## the client of X-AnyLabeling asks our server; its environment goes to .venv-readers
	$(BIN)/python benchmarks/readers/serve_x_anylabeling.py --work runs/x-anylabeling --environments .venv-readers $(ARGS)

fuzz: install-test ## the generators of hostile input, for an hour or so
	HYPOTHESIS_PROFILE=fuzz OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/hostile --hypothesis-profile fuzz $(ARGS)

check: install-test ## linter, formatter and type checkers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.10 --package edgetune_runtime

docs: $(VENV)/.installed-docs ## the documentation as a site with search, in site/; dead links and anchors are errors
	$(BIN)/mkdocs build --strict

install: $(VENV)/.installed
install-test: $(VENV)/.installed-test

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"error: edgetune needs Python 3.11 or newer, $(PYTHON) is {v[0]}.{v[1]}\nhint: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv $(VENV)

# torch goes first and by its plain name, so that an index or a folder with a CPU build of the release can serve it.
$(VENV)/.torch: constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) (some minutes, once)"
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-compile torch==2.13.0
	@touch $@

$(VENV)/.installed: $(VENV)/.torch $(PINS)
	@$(PIP) --editable "runtime[onnx]" --editable ".[all]"
	@touch $@

$(VENV)/.installed-test: $(VENV)/.torch $(PINS)
	@$(PIP) --editable "runtime[onnx]" --editable ".[dev]"
	@$(if $(RTX),$(PIP) --no-deps $(RTX))
	@touch $@ $(VENV)/.installed

# Neither torch nor another extra: an editable runtime and what reads its docstrings.
$(VENV)/.installed-docs: $(PINS) | $(BIN)/python
	@$(PIP) --editable runtime --editable ".[docs]"
	@touch $@

clean: ## remove the environment and what the tools left
	rm -rf $(VENV) .venv-readers runs site dist .mypy_cache .ruff_cache .pytest_cache

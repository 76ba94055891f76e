# Everything a person runs; `make` alone lists it. The first target sets the environment up, a later one reinstalls
# nothing unless requirements.lock or pyproject.toml has changed.
#
#   make demo VENV=/opt/abd-venv  another place for the environment, or one that exists
#   make test ARGS='-k wide'      more words for the command that the target runs
#   make demo PYTHON3=python3.13  the interpreter that the environment is made with, where there is no uv

VENV ?= .venv
ARGS ?=
PYTHON3 ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)

# PyTorch is no part of the lock, since its CPU and GPU builds differ by machine. pip installs the build that the
# indexes it is set up with offer; on Linux PyPI's is the large one for CUDA. For the small CPU build from PyTorch's
# own index, say `make bench TORCH='torch==2.13.0 --index-url <the CPU index on PyTorch's installation page>'`.
TORCH ?= torch==2.13.0

PYTHON := $(VENV)/bin/python
UV := $(shell command -v uv 2>/dev/null)
LOCKED := $(VENV)/.stamp-locked
WITH_TORCH := $(VENV)/.stamp-torch
WITH_EXTRA := $(VENV)/.stamp-extra
CUDA := $(VENV)-cuda
JAX := $(shell sed -n 's/^jax==\([0-9.]*\).*/\1/p' requirements.lock)
COMPILE := pip compile pyproject.toml --extra test --extra dev --universal --python-version 3.11 \
	--fork-strategy fewest --generate-hashes --output-file requirements.lock

# The demo in a minute: every stage, none long enough to learn anything. WHEEL_OPTIONS: more words for pip.
SMOKE := reproduce digits --teacher.epochs 1 --student.cycles 2 --student.updates 1 --student.batch 8 \
	--student.evaluate-every 2 --student.checkpoint-every 2 --synthesis.features 4 \
	--inversion.steps 1 --inversion.images 4
WHEEL_OPTIONS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-slow test-torch test-browser lint bench compile-gpu docs wheel lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(LOCKED) ## set the environment up (every target below does that by itself)

demo: $(LOCKED) ## poison, distill without data, defend, report: runs/demo/report.html
	$(PYTHON) -m experiments reproduce digits --out runs/demo --resume $(ARGS)

test: $(LOCKED) ## run the tests
	$(PYTHON) -m pytest -n 2 tests $(ARGS)

test-slow: $(LOCKED) ## run the tests that take minutes each
	$(PYTHON) -m pytest -n 2 -m slow --timeout 7200 tests $(ARGS)

test-torch: $(WITH_TORCH) ## run the tests that compare with PyTorch
	$(PYTHON) -m pytest -n 2 -m torch tests $(ARGS)

test-browser: $(WITH_EXTRA)-browser ## open the pages in headless Chromium (the system's, or `playwright install chromium`)
	$(PYTHON) -m pytest -m browser tests $(ARGS)

lint: $(LOCKED) ## check style, types and which room imports which
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(VENV)/bin/lint-imports --no-logo

bench: $(WITH_TORCH) ## time our steps and cycles beside eager PyTorch's
	$(PYTHON) -m experiments bench $(ARGS)

compile-gpu: $(CUDA)/.stamp ## what an H100's compiler says of a preset's rounds, without one: ARGS='cifar10 --dtype bfloat16'
	$(CUDA)/bin/python -m experiments compile $(ARGS) --topology h100:1x1x8

docs: $(WITH_EXTRA)-docs ## build the documentation: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict $(ARGS)

# Away from the sources, so that nothing but the wheel can be imported.
wheel: $(LOCKED) ## build wheel and sdist into dist/, install the wheel into an empty environment, run a tiny demo from it
	rm -rf dist build/wheel
	$(PYTHON) -m hatchling build
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install --disable-pip-version-check --quiet $(WHEEL_OPTIONS) dist/*.whl
	cd build/wheel && venv/bin/python -m experiments $(SMOKE) --out run
	test -s build/wheel/run/report.html

lock: | $(PYTHON) ## bring requirements.lock up to date with pyproject.toml (ARGS=--upgrade for newer releases)
ifdef UV
	"$(UV)" $(COMPILE) --quiet $(ARGS)
else
	$(PYTHON) -m pip install --quiet uv
	$(VENV)/bin/uv $(COMPILE) --quiet $(ARGS)
endif

# An environment of its own on top of the locked one: where the plugin is installed, JAX looks for a GPU first.
$(CUDA)/.stamp: | $(LOCKED)
	$(PYTHON) -m venv "$(CUDA)"
	$(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$("$(CUDA)/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/locked.pth"
	$(CUDA)/bin/python -m pip install --disable-pip-version-check --no-deps \
		jax-cuda12-plugin==$(JAX) jax-cuda12-pjrt==$(JAX)
	@touch $@

# pip's rather than uv's, as for PyTorch: the extras are no part of the lock.
$(WITH_EXTRA)-%: | $(LOCKED)
	$(PYTHON) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m ensurepip
	$(PYTHON) -m pip install --disable-pip-version-check --editable '.[$*]'
	@touch $@

clean: ## remove caches and builds; the environment and runs/ stay
	rm -rf build dist *.egg-info .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find abd_jax experiments tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(PYTHON):
ifdef UV
	"$(UV)" venv --seed --allow-existing --python '>=3.11' "$(VENV)"
else
	@test -n "$(PYTHON3)" || { echo 'make: no Python 3.11 or newer found: install one, or name it: make PYTHON3=…' >&2; exit 1; }
	$(PYTHON3) -m venv "$(VENV)"
endif

$(LOCKED): requirements.lock pyproject.toml | $(PYTHON)
ifdef UV
	"$(UV)" pip install --python $(PYTHON) --require-hashes --requirements requirements.lock
	"$(UV)" pip install --python $(PYTHON) --no-deps --no-build-isolation --editable .
else
	$(PYTHON) -m pip install --disable-pip-version-check --require-hashes --requirement requirements.lock
	$(PYTHON) -m pip install --disable-pip-version-check --no-deps --no-build-isolation --editable .
endif
	@touch $@

# uv would not look where pip is set up to look, so this is pip's in either case.
$(WITH_TORCH): | $(LOCKED)
	$(PYTHON) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m ensurepip
	$(PYTHON) -m pip install --disable-pip-version-check $(TORCH)
	@touch $@

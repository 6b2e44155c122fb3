# The pipeline and its tests, in a virtual environment of the repository's own.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
INSTALL = .venv/bin/pip install --quiet --constraint constraints.txt --editable

ifneq ($(shell test ! -e .venv/installed || .venv/bin/pip --version >/dev/null 2>&1 || echo broken),)
$(error the commands in .venv do not run, as after a move of this folder: `rm -r .venv`, and make sets it up anew)
endif

TABLE = sed '/^\#\# /,$$d' reports/metrics.md

.PHONY: repro quick evaluate test test-ray lint

# The published table: the data from its source, the trained networks from store/. Then the beginning of the smallest is
# trained here, a minute, and must have the published bytes; 4 is the code where no native engine can be, as without a
# compiler.
repro: .venv/installed
	@dvc repro preprocess
	@dvc repro --pull
	@$(TABLE)
	@echo "The whole report, with figures: reports/metrics.md"
	@resnet-cifar verify || [ $$? -eq 4 ]

# Everything from nothing, in minutes: 100 iterations a network.
quick: .venv/installed
	@dvc exp run --set-param preset=quick
	@$(TABLE)
	@echo "git checkout params.yaml dvc.lock reports && make repro   brings the published results back"

# The published networks once more on the test images: git sees no difference.
evaluate: .venv/installed
	@dvc repro preprocess
	@dvc repro --pull train
	@dvc repro --force --single-item evaluate
	@git diff --stat --exit-code dvc.lock && echo "the same bytes as published, on this processor"

test: .venv/installed-test
	python -m pytest

test-ray: .venv/installed-ray
	python -m pytest -m ray --numprocesses 0 tests/test_cluster.py

lint: .venv/installed-test
	ruff check .
	ruff format --check .

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info[:2] <= (3, 13) or sys.exit("Python 3.11 to 3.13 is needed: make PYTHON=python3.12 ...")'
	@echo "Setting up .venv, some minutes the first time: PyTorch's CUDA build is large"
	$(PYTHON) -m venv .venv
	$(INSTALL) '.[pipeline,zoo]'
	touch $@

.venv/installed-ray: .venv/installed-test
	$(INSTALL) '.[test,ray]'
	touch $@

.venv/installed-test: .venv/installed
	$(INSTALL) '.[test]'
	touch $@

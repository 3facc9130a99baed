# Two commands: `make run` searches the embedded default and exports the winner,
# `make test` runs the whole suite. Both set everything up in .venv first.
PYTHON ?= python3
NAME ?= dformer
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: run test lint docs format bench image clean

run: $(VENV)/installed
	$(BIN)/tune run search_spaces/dformer.yaml --name $(NAME) --export bundle

# The tests that start Ray have both cores of a small machine to themselves; the others share them.
test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m ray
	$(BIN)/python -m pytest -m "not ray" --numprocesses 2

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .

# The site is in docs/_build/html; warnings are errors.
docs: $(VENV)/installed-dev
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Minutes each, for a machine that has nothing else to do; tables on screen, JSON in RESULTS.
# DATA_DIR names real data in Decathlon or nnU-Net layout.
RESULTS := tests/benchmarks/results
DATA_DIR ?= phantom

bench: bench-model bench-data bench-metrics bench-search bench-folds bench-overhead bench-start

bench-%: $(VENV)/installed-dev
	mkdir -p $(RESULTS)
	$(BIN)/python tests/benchmarks/bench_$*.py $(BENCH_ARGS) --json $(RESULTS)/bench_$*.json

# The image, and a study of one trial in it: about 10 minutes, with buildah, without a Docker engine.
# IMAGE_ARGS="--build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu" saves gigabytes.
image:
	.ci/image

bench-data: BENCH_ARGS = $(DATA_DIR)

clean:
	rm -rf $(VENV) build docs/_build *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; choose one with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Our console script `tune` must be the last one written: Ray's wheel has one of its own.
$(VENV)/installed: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev,docs,onnx,dicom]'
	touch $@

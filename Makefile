# "make help" lists the targets. Each one but test-gpu sets itself up: a fresh checkout needs
# Python 3.11 alone.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# One is written last for each set of dependencies that is installed, so a setup that was cut short
# is never taken for a complete one.
TASKS := video detection pointcloud
READY := $(VENV)/ready
SETUP := pyproject.toml requirements/constraints.txt requirements/docs.txt \
  tools/system_libraries.py
INSTALL := $(BIN)/python -m pip install --progress-bar off --quiet \
  --constraint requirements/constraints.txt --editable

# The tests' processes: a worker holds up to 3 GB.
WORKERS := --numprocesses auto --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup test test-slow test-gpu lint demo demo-detection demo-pointcloud demo-localization benchmark docs clean

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 28

setup: $(READY) ## create .venv with every dependency

define CHECK
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' || { \
	  echo 'dr2net needs Python 3.11 and "$(PYTHON)" did not start or is older.' \
	       'Install Python 3.11, or name one: make PYTHON=/path/to/python3.11 setup' >&2; exit 1; }
	@$(PYTHON) tools/system_libraries.py
endef

$(READY): $(SETUP)
	$(CHECK)
	$(PYTHON) -m venv --clear $(VENV)
	$(INSTALL) '.[video,detection,pointcloud,transformers,dev]' --requirement requirements/docs.txt
	@touch $(TASKS:%=$(VENV)/ready-%) $(READY)

# What a task's demo needs, and no more, beside what is there.
$(TASKS:%=$(VENV)/ready-%): $(VENV)/ready-%: $(SETUP)
	$(CHECK)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) '.[$*]'
	@touch $@

lint: setup ## ruff over everything, mypy over dr2net/
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint ## lint, then every test that is not slow, in random order (under 12 minutes on 2 cores)
	$(BIN)/python -m pytest -m "not slow" $(WORKERS) --durations=30

test-slow: setup ## the slow tests
	$(BIN)/python -m pytest -m slow

# With a Python that has torch, triton, timm, numpy and pytest: machines with a GPU often have no
# network to set up from.
test-gpu: ## the tests that need a GPU, in the environment of PYTHON as it is (under 3 minutes)
	$(PYTHON) -m pytest -m gpu

demo: $(VENV)/ready-video ## finetune a tiny network seven ways on videos made for it (about 10 minutes on 2 cores)
	$(BIN)/python tools/demos/video.py

demo-detection: $(VENV)/ready-detection ## the same for a detector of small objects in large images
	$(BIN)/python tools/demos/detection.py

demo-pointcloud: $(VENV)/ready-pointcloud ## the same for the points of furnished rooms
	$(BIN)/python tools/demos/pointcloud.py

demo-localization: $(VENV)/ready-video ## train a tiny localizer of actions in videos of a minute (about 15 minutes)
	$(BIN)/python tools/demos/localization.py

benchmark: setup ## memory, time and gradient error of ways to train, in a small setting (under 3 minutes)
	$(BIN)/python tools/benchmark.py --models vit_tiny --sizes 224 --batches 8 --steps 3 \
	  --out work_dirs/benchmark/benchmark.json --plot work_dirs/benchmark/benchmark.png

docs: setup ## build the site of docs/ into site/
	$(BIN)/python -m mkdocs build --strict

clean: ## remove .venv and what the demos wrote
	rm -rf $(VENV) work_dirs/demo_* work_dirs/benchmark data/motion data/motion_videos data/small_objects data/rooms

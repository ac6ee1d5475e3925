# The two commands of the README, and what a developer needs. Everything happens in .venv, which is made when missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN_DIR ?= runs/tiny

.PHONY: setup train test test-slow lint resolve clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable . --group test --group lint
	touch $@

# The main job: train on the embedded language model, then load the result back in a new process and measure again.
train: setup
	$(BIN)/python examples/train.py --output_dir $(RUN_DIR) --overwrite_output_dir
	$(BIN)/python examples/evaluate.py $(RUN_DIR)

# Two workers, one thread each: with more threads than cores torch spends its time waiting.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test: setup
	$(PYTEST) -m "not slow"

test-slow: setup
	$(PYTEST) -m slow --durations 10

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# What a user's pip finds, not what lies on this machine.
resolve: setup
	.ci/resolve $(BIN)

clean:
	rm -rf runs build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

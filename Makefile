# The two commands of the README, and what a developer needs. Everything happens in .venv, which is made when missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN_DIR ?= runs/tiny

.PHONY: setup train test test-slow test-second test-newest lint resolve docs clean

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

# Two workers, one thread each: with more threads than cores torch spends its time waiting. tests/conftest.py orders
# the files: by itself pytest-xdist begins with those of most tests, and ends with the longest.
PARALLEL := --numprocesses 2 --dist loadfile --no-loadscope-reorder
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL)

test: setup
	$(PYTEST) -m "not slow"

test-slow: setup
	$(PYTEST) -m slow --durations 10

# What depends on the release of transformers: hooks, steering, evaluation.
RELEASE_TESTS := tests/hooks tests/test_attachment.py tests/evaluation tests/analysis/test_positions.py \
	tests/analysis/test_interventions.py tests/analysis/test_wrapped_models.py tests/analysis/test_effects.py \
	tests/circuits
SECOND := $(VENV)-second
NEWEST := $(VENV)-newest

# An environment of its own, made in seconds: newer packages before those of the first.
test-second: $(SECOND)/.ready
	OMP_NUM_THREADS=1 $(SECOND)/bin/python -m pytest $(PARALLEL) $(RELEASE_TESTS)

SITE := import sysconfig; print(sysconfig.get_path("purelib"))
$(SECOND)/.ready: $(VENV)/.ready constraints-newest.txt
	$(BIN)/python -m venv --clear --without-pip $(SECOND)
	echo "import site; site.addsitedir('$$($(BIN)/python -c '$(SITE)')')" > "$$($(SECOND)/bin/python -c '$(SITE)')/first.pth"
	$(BIN)/python -m pip --python $(SECOND)/bin/python install --quiet --no-deps --requirement constraints-newest.txt
	$(BIN)/python -m pip --python $(SECOND)/bin/python check
	touch $@

# What pip finds today within the ranges of pyproject.toml; outside CI, so that a release of others never stops ours.
test-newest:
	$(PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/pip install --quiet --upgrade pip
	$(NEWEST)/bin/pip install --quiet --editable . --group test
	$(NEWEST)/bin/pip list --format freeze
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest $(PARALLEL) $(RELEASE_TESTS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	.ci/snippets $(BIN)

# What a user's pip finds, not what lies on this machine.
resolve: setup
	.ci/resolve $(BIN)

# The documentation as a site, in site/. An environment of its own: it reads the code and does not import it.
DOCS := $(VENV)-docs
docs: $(DOCS)/.ready
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict --quiet

$(DOCS)/.ready: pyproject.toml constraints-docs.txt
	$(PYTHON) -m venv --clear $(DOCS)
	$(DOCS)/bin/pip install --quiet --upgrade pip
	$(DOCS)/bin/pip install --quiet --constraint constraints-docs.txt --group docs
	touch $@

clean:
	rm -rf runs build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis

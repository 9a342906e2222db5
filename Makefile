# make demo   set up .venv with the JAX backend and continue a recording
# make test   set up .venv with all backends and run the tests
# make test-scale, make test-tfio   Apache Beam's and tensorflow-io's tests, each
#             in an environment of its own
# make lint   ruff
# make wheel  build dist/*.whl

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN = $(VENV)/bin
# Tiny models: two processes of one thread, as more threads only wait for each
# other. Slow tests are taken over by the process that has none left.
TEST_ENV = OMP_NUM_THREADS=1 TF_CPP_MIN_LOG_LEVEL=2
JOBS ?= 2
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

.PHONY: demo test test-jax test-tensorflow test-torch test-scale test-tfio \
	lint wheel clean

demo: $(VENV)/.installed-jax
	$(BIN)/python examples/demo.py --install-seconds $$(cat $<)

test: test-jax test-tensorflow test-torch

# The whole suite on JAX, the core (what depends on the backend) on the others.
test-jax: $(VENV)/.installed-all
	$(TEST_ENV) KERAS_BACKEND=jax $(PYTEST)

test-tensorflow: $(VENV)/.installed-all
	$(TEST_ENV) KERAS_BACKEND=tensorflow $(PYTEST) -m core

test-torch: $(VENV)/.installed-all
	$(TEST_ENV) KERAS_BACKEND=torch $(PYTEST) -m core

# What cannot stand beside the versions of the others: .venv-scale, .venv-tfio.
test-scale: VENV = .venv-scale
test-tfio: VENV = .venv-tfio

test-scale:
	$(MAKE) VENV=$(VENV) $(VENV)/.installed-scale
	$(TEST_ENV) KERAS_BACKEND=jax $(PYTEST) tests/scale

test-tfio:
	$(MAKE) VENV=$(VENV) $(VENV)/.installed-tfio
	$(TEST_ENV) KERAS_BACKEND=tensorflow $(PYTEST) tests/tfio

lint: $(VENV)/.installed-all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

wheel: $(VENV)/.installed-all
	rm -rf build dist
	$(BIN)/python -m pip wheel -q --no-deps -w dist .

# Installs requirements/%.txt once, again only when what it asks for changes.
# The file holds the seconds that the installation took.
$(VENV)/.installed-%: requirements/%.txt requirements/constraints.txt \
		pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=..."; exit 1; }
	@echo "Installing requirements/$*.txt into $(VENV): a few minutes ..."
	@start=$$(date +%s) && \
	{ test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); } && \
	$(BIN)/python -m pip install $(if $(CI),-q) -r $< && \
	echo $$(($$(date +%s) - start)) > $@

clean:
	rm -rf $(VENV) .venv-scale .venv-tfio build dist *.egg-info

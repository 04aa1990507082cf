# Works in the active virtual environment, or makes .venv/ with PYTHON (>= 3.11).
PYTHON ?= python3
VENV := $(or $(VIRTUAL_ENV),.venv)
RUN := $(VENV)/bin/python
DEMO_DIR ?= runs/demo
IS_RECENT := 'import sys; sys.exit(sys.version_info < (3, 11) and "Python must be 3.11 or newer; set PYTHON=")'

# Tests that take seconds and need neither PyTorch nor a compiled network.
FAST := structure cameras cape trajectories camera_preview bootstrap facts published records scenes \
	archives evaluation_records compare picture_rules photo_windows inputs matting targets \
	view_plans nerf_folder sample_outputs random_views protocol_gso protocol_nerf protocol_rtmv \
	protocol_spiral import_co3d import_formats import_gso import_re10k web_jobs web_session \
	watchdog weight_fuzz

.PHONY: demo test test-fast test-all lint format clean

$(VENV)/.escherjax-core: pyproject.toml
	$(if $(VIRTUAL_ENV),$(RUN),$(PYTHON)) -c $(IS_RECENT)
	test -n "$(VIRTUAL_ENV)" || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip --version >/dev/null 2>&1 || $(RUN) -m ensurepip
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable .
	touch $@

$(VENV)/.escherjax-dev: $(VENV)/.escherjax-core
	$(RUN) -m pip install --quiet --editable '.[dev]'
	touch $@

# The tests compare with PyTorch; constraints.txt says why its version is held here.
$(VENV)/.escherjax-test: $(VENV)/.escherjax-core constraints.txt
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

demo: $(VENV)/.escherjax-core  ## trains a small network on procedural scenes and samples new views, on CPU
	$(RUN) -m escherjax.train --config configs/demo.py --workdir $(DEMO_DIR)
	rm -rf $(DEMO_DIR)/new_views $(DEMO_DIR)/scene
	$(RUN) -m data_prep.procedural --out $(DEMO_DIR)/scene --folders --seed 5 --limit 1 \
		--num-views 9 --resolution 32
	$(RUN) -m escherjax.sample --weights $(DEMO_DIR) --views $(DEMO_DIR)/scene/procedural-5-0000000 \
		--references 0,1,2 --targets all --guidance 1 --out $(DEMO_DIR)/new_views
	@echo "Look at $(DEMO_DIR)/new_views/contact_sheet.png: new views below the true ones."

test: $(VENV)/.escherjax-test  ## the tests, offline, on CPU
	$(RUN) -m pytest -n 2 --dist loadfile

test-fast: $(VENV)/.escherjax-dev  ## the tests that take seconds; PyTorch is not needed
	$(RUN) -m pytest -n 2 --dist loadfile $(FAST:%=tests/test_%.py)

test-all: $(VENV)/.escherjax-test  ## every test, also those that take minutes
	$(RUN) -m pytest -n 2 --dist loadfile -m ""

lint: $(VENV)/.escherjax-test  ## what must hold before a commit: style, format, types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(VENV)/.escherjax-dev  ## formats the code and mends what ruff can mend
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:  ## removes .venv/ and caches; an active virtual environment stays
	rm -rf .venv .jax_cache .pytest_cache .ruff_cache .mypy_cache build *.egg-info

# Everything here makes its own virtual environment first; PYTHON chooses the interpreter (>= 3.11).
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
DEMO_DIR ?= runs/demo

.PHONY: demo test lint clean

$(VENV)/.core: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable .
	touch $@

# The tests compare with PyTorch; constraints.txt says why its version is held here.
$(VENV)/.test: $(VENV)/.core constraints.txt
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

demo: $(VENV)/.core  ## trains a small network on procedural scenes and draws new views, CPU
	$(RUN) -m escherjax.train --config configs/demo.py --workdir $(DEMO_DIR)
	rm -rf $(DEMO_DIR)/new_views $(DEMO_DIR)/scene
	$(RUN) -m data_prep.procedural --out $(DEMO_DIR)/scene --folders --seed 5 --limit 1 \
		--num-views 9 --resolution 32
	$(RUN) -m escherjax.sample --weights $(DEMO_DIR) --views $(DEMO_DIR)/scene/procedural-5-0000000 \
		--references 0,1,2 --targets all --guidance 1 --out $(DEMO_DIR)/new_views
	@echo "Look at $(DEMO_DIR)/new_views/contact_sheet.png: new views below the true ones."

test: $(VENV)/.test  ## every test, offline, on CPU
	$(RUN) -m pytest -n 2 --dist loadfile

lint: $(VENV)/.test
	$(RUN) -m ruff check .
	$(RUN) -m mypy

clean:
	rm -rf $(VENV) .jax_cache .pytest_cache .ruff_cache .mypy_cache build *.egg-info

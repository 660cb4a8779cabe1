# make demo: train, evaluate and draw CAMs on the phantom.  make test: run every test.
# On a new machine each target first sets up the environment it needs in .venv.
PYTHON ?= python3
PY := .venv/bin/python

.PHONY: help demo test check bench clean

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

.venv/run: requirements.txt
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/dev: .venv/run requirements-extras.txt requirements-dev.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps "grad-cam>=1.5.4"
	@touch $@

demo: .venv/run  ## train, evaluate, draw CAMs and write a report on synthetic radiographs (about 3 minutes)
	$(PY) train.py preset=demo
	$(PY) test.py --model resnet18
	$(PY) draw_cam.py --model resnet18 --count 60 --errors 12

test: .venv/dev  ## run ruff and all tests (under 8 minutes)
	$(PY) -m ruff check .
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile

check: .venv/dev  ## run ruff and the fast tests (about a minute)
	$(PY) -m ruff check .
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile -m "not slow"

bench: .venv/dev  ## run the benchmarks against their rivals and summarise them (under 25 minutes)
	for name in train_speed cam_speed test_speed startup scale; do $(PY) benchmarks/$$name.py || exit 1; done
	$(PY) benchmarks/summary.py

clean:  ## delete the environment and the caches, but keep runs/
	rm -rf .venv .cache .pytest_cache .ruff_cache .hypothesis

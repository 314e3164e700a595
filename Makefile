# `make demo` and `make test` start from nothing but Python 3.10 to 3.13: they make .venv first.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH ?= dit-7800 'vae-*-5x*' vae-decode-longer text-encoder-512 generate import help load --rounds 3 --threads 2
PROMPT ?= a red circle moving left on a white background

.PHONY: help env demo test lint types test-slow test-distributed parity evaluate shapes-ti2v format bench clean soak

help:
	@echo "make demo       a video from a text prompt, with the model in the package (PROMPT='...' for another)"
	@echo "make test       lint, types and tests"
	@echo "make test-slow  the tests that take minutes"
	@echo "make test-distributed  the whole table of ways to share the work among processes"
	@echo "make parity     every pipeline against its reference; writes docs/parity.md"
	@echo "make evaluate   what the model in the package gets right; writes the tables and the picture of README.md"
	@echo "make shapes-ti2v  trains the companion of the model in the package that is given a frame, to dist (an hour)"
	@echo "make bench      the cases with bars, to docs/benchmarks.md: 30 minutes (BENCH='...' for others)"
	@echo "make soak       the server under load for some minutes (SOAK='--jobs 60' for less)"
	@echo "make lint       ruff; make format lets it correct"
	@echo "make types      mypy"
	@echo "make env        the environment in $(VENV)"
	@echo "make clean      remove $(VENV) and the caches"

# torch first: one version for everybody, and what is installed later keeps it.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' \
		|| { echo "$(PYTHON) is `$(PYTHON) -V 2>&1`: 3.10 to 3.13 is needed; try make PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,verify,train,tune,ray,serve,postgres,s3,studio,quant]'
	@touch $@

env: $(STAMP)

demo: $(STAMP)
	$(BIN)/fastvideo generate "$(PROMPT)" --output outputs/demo.mp4 --contact-sheet outputs/demo.png

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

# in this order, so that the tests' closing line is the last
test: $(STAMP)
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory types
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m "not slow and not distributed"

test-slow: $(STAMP)
	$(BIN)/pytest -m slow --timeout=3600

test-distributed: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" --timeout=1200 tests/distributed tests/worker

parity: $(STAMP)
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python benchmarks/parity.py

evaluate: $(STAMP)
	$(BIN)/python -m recipes.shapes.report $(EVALUATE)

shapes-ti2v: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.shapes.run adopt latents dit export --setup image --work .work/shapes-ti2v
	tar -C dist -czf dist/shapes-ti2v.tar.gz shapes-ti2v

bench: $(STAMP)
	$(BIN)/fastvideo bench --output docs/benchmarks.md $(BENCH)

soak: $(STAMP)
	$(BIN)/python benchmarks/soak.py $(SOAK)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist

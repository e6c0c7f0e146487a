# Two commands to know: `make quickstart` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
STEPS ?= 240

.PHONY: quickstart test lint bench clean

quickstart: .venv/sample
	rm -rf quickstart
	$(BIN)/convlora sample brain quickstart/data
	$(BIN)/convlora train quickstart/data --out quickstart/run --max-steps $(STEPS)
	$(BIN)/convlora evaluate quickstart/run quickstart/data --overlay quickstart/pictures
	@echo "Picture (image | truth | prediction): quickstart/pictures/_overview.png"
	@echo "Next, your own images: $(BIN)/convlora train DATA --out runs/mine --backbone facebook/sam-vit-base"

test: .venv/test
	$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0

lint: .venv/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The short benchmarks, about ten minutes; docs/performance.md tells the long ones.
bench: .venv/test
	mkdir -p bench
	$(BIN)/python benchmarks/experts.py | tee bench/experts.json
	$(BIN)/python benchmarks/encoder.py --image-size 512 | tee bench/encoder.json
	$(BIN)/python benchmarks/training_step.py --image-size 512 --sides lora,conv-lora,peft --dtype auto \
	  | tee bench/training_step.json
	$(BIN)/python benchmarks/embedding_cache.py --images 2 | tee bench/embedding_cache.json
	$(BIN)/python benchmarks/tiled_prediction.py --size 5000 | tee bench/tiled_prediction.json

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "convlora needs Python 3.11 or newer; try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/%: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing convlora[$*] and PyTorch into .venv; the first time takes a few minutes."
	$(PIP) -e '.[$*]'
	@touch $@

clean:
	rm -rf .venv quickstart bench build dist

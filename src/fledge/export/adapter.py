"""Writing the adapter of a model as a directory of PEFT, and comparing it with fledge by loading it with PEFT."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from fledge.errors import FledgeError, first_line
from fledge.export.comparison import scored_sequences
from fledge.export.huggingface import DTYPES, cast_weight, compare_scores
from fledge.export.source import ExportSource
from fledge.export.weight_types import WeightType
from fledge.model.adapter_files import write_adapter
from fledge.model.adapters import adapter_weights, trained_parameters
from fledge.model.huggingface_loading import import_transformers
from fledge.model.protocol import LanguageModel
from fledge.recipe.schema import QuantizationConfig

PROGRAM = "PEFT"
NOT_VERIFIED = "not verified: PEFT or transformers is not installed; pip install peft 'fledge[hf]', and export again"


def write_adapter_directory(source: ExportSource, weight_type: WeightType, folder: Path) -> list[str]:
    """Write the adapter, which names its base model by its whole path, and the tokenizer; returns lines about them. Raises
    FledgeError for weights that float16 cannot hold."""
    model, dtype = source.model, DTYPES[weight_type.name]
    assert model.adapter is not None
    if model.adapter.base is not None:
        model.adapter = replace(model.adapter, base=model.adapter.base.resolve())
    weights = {name: cast_weight(name, tensor, dtype) for name, tensor in adapter_weights(model).items()}
    write_adapter(folder, model, weights)
    source.tokenizer.save(folder)
    trained, total = trained_parameters(model)
    quantization = model.adapter.quantization
    how = "" if quantization is None else f"load its base model with {_in_bitsandbytes(quantization)}"
    base = model.adapter.base or "no directory: write it into adapter_config.json as base_model_name_or_path"
    return [
        f"adapter of {trained:,} parameters beside {total - trained:,} of its base model",
        f"base model: {base}",
        *filter(None, [how]),
    ]


def _in_bitsandbytes(quantization: QuantizationConfig) -> str:
    """The call of transformers that makes the same settings."""
    settings = {"load_in_4bit": True, **{f"bnb_4bit_{name}": value for name, value in quantization.model_dump().items()}}
    return f"BitsAndBytesConfig({', '.join(f'{name}={value!r}' for name, value in settings.items())})"


@torch.no_grad()
def _give_rounded_weights(model: LanguageModel, theirs: Any) -> None:
    """Give the library's base model the numbers that 4 bits leave of its weights, where the adapter was trained on those."""
    if model.adapter is None or model.adapter.quantization is None:
        return
    others, own = dict(theirs.named_parameters()), adapter_weights(model)
    for name, parameter in model.named_parameters():
        if name not in own:
            others[model.file_name(name)].copy_(parameter)


def verify_with_peft(source: ExportSource, folder: Path) -> list[str]:
    """Lines about the comparison of an adapter's directory with the model that it was made of.

    Raises FledgeError if PEFT cannot load it, or computes other log-probabilities than fledge does from the same files.
    """
    base = source.model.adapter.base if source.model.adapter else None
    if base is None:
        return ["not verified: the adapter names no base model"]
    if find_spec("peft") is None or find_spec("transformers") is None:
        return [NOT_VERIFIED]
    import peft

    sequences = scored_sequences(source.tokenizer, source.model.config.max_position_embeddings)
    try:
        transformers = import_transformers("the comparison")
        auto_class = getattr(transformers, source.model.auto_class)
        theirs = auto_class.from_pretrained(base, dtype=torch.float32, local_files_only=True)
        _give_rounded_weights(source.model, theirs)
        adapted = peft.PeftModel.from_pretrained(theirs, str(folder)).eval()
    except Exception as error:  # the libraries raise errors of many kinds
        raise FledgeError(f"{PROGRAM} cannot load what was written: {first_line(error)}", where=str(folder)) from error
    return compare_scores(source, folder, sequences, adapted, PROGRAM, peft.__version__)

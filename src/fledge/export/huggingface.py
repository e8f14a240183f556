"""Writing a Hugging Face directory in one type of weights, and comparing it with fledge by loading it with transformers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fledge.errors import FledgeError, first_line
from fledge.export.comparison import (
    check_all_tokens,
    check_difference,
    difference,
    prompts,
    scored_sequences,
    tokenised_texts,
)
from fledge.export.gguf_architecture import rope_settings
from fledge.export.source import ExportSource
from fledge.export.weight_types import WeightType
from fledge.generation import score_tokens
from fledge.model.hf_config import read_config_json
from fledge.model.huggingface_loading import import_transformers
from fledge.model.loading import load_model
from fledge.model.saving import save_with_tokenizer
from fledge.run.text_files import write_and_verify

PROGRAM = "transformers"
TOLERANCE = 0.0005  # of the mean: both compute in float32 with the weights of the files
COMPOSES = (
    f"{PROGRAM} brings texts into the form NFC for models of this type, the tokenizer itself does not: texts in another form "
    "get other tokens there"
)
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def write_directory(source: ExportSource, weight_type: WeightType, folder: Path) -> None:
    """Write model, tokenizer and generation settings. Raises FledgeError for weights that float16 cannot hold."""
    dtype = DTYPES[weight_type.name]
    weights = {name: cast_weight(name, tensor, dtype) for name, tensor in source.model.state_dict().items()}
    save_with_tokenizer(source.model, source.tokenizer, folder, weights)
    config = readable_by_old_and_new(read_config_json(folder), str(dtype).removeprefix("torch."))
    write_and_verify(folder / "config.json", json.dumps(config, indent=1))


def cast_weight(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A weight in another type. Raises FledgeError for values that float16 cannot hold."""
    cast = tensor.to(dtype) if tensor.is_floating_point() else tensor
    if not bool(torch.isfinite(cast).all()):
        raise FledgeError(f"{name} has values that float16 cannot hold", where="--type", hint="use bf16")
    return cast


def readable_by_old_and_new(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """config.json with the keys of transformers 4 beside those of transformers 5: the type of weights, and the settings of the
    rotary embedding, for which older versions would take defaults."""
    config = {**config, "dtype": dtype, "torch_dtype": dtype}
    if not (config.get("rope_parameters") or config.get("rope_scaling") or config.get("rope_theta")):
        return config
    rope = rope_settings(config)
    config["rope_theta"] = rope["rope_theta"]
    if rope["rope_type"] != "default":
        config["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    return config


@torch.no_grad()
def compare_scores(
    source: ExportSource, folder: Path, sequences: Sequence[list[int]], model: Any, program: str, version: str
) -> list[str]:
    """Lines about the log-probabilities that a program's `model`, which it has loaded from `folder`, gives to sequences. Raises
    FledgeError if fledge computes others from the same files."""
    theirs = [transformers_scores(model, sequence) for sequence in sequences]
    same = difference(score_tokens(load_model(folder), sequences), theirs)
    check_difference(program, same, TOLERANCE, str(folder))
    drift = difference(score_tokens(source.model, sequences), theirs)
    return [
        f"{program} {version} against fledge from the same files, log-probabilities in nats: {same.text()}",
        f"{program} against the model before export: {drift.text()}",
    ]


@torch.no_grad()
def verify_with_transformers(source: ExportSource, folder: Path) -> list[str]:
    """Lines about the comparison of a directory with the model that it was made of.

    Raises FledgeError if transformers cannot load it, makes other tokens of a text or conversation, or computes other
    log-probabilities than fledge does from the same files.
    """
    try:
        transformers = import_transformers("the comparison")
    except FledgeError as error:
        return [f"not verified: transformers is not installed; {error.hint}, and export again"]
    sequences = scored_sequences(source.tokenizer, source.model.config.max_position_embeddings)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    except Exception as error:  # the library raises errors of many kinds
        raise FledgeError(f"transformers cannot load what was written: {first_line(error)}", where=str(folder)) from error
    turns = [[{"role": each.role, "content": each.content} for each in messages] for messages in prompts(source.tokenizer)]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    composed = _only_theirs_composes(source, tokenizer)
    equal = check_all_tokens(
        PROGRAM,
        source.tokenizer,
        [tokenizer(text, add_special_tokens=False)["input_ids"] for text in tokenised_texts(source.tokenizer, composed)],
        [tokenizer.apply_chat_template(each, **options)["input_ids"] for each in turns],
        str(folder),
        composed=composed,
    )
    return [
        *compare_scores(source, folder, sequences, model, PROGRAM, transformers.__version__),
        equal,
        *([COMPOSES] if composed else []),
    ]


def _only_theirs_composes(source: ExportSource, tokenizer: Any) -> bool:
    """Whether the library brings texts into the form NFC although tokenizer.json does not say so: it does for some types of
    models, whatever their files say."""
    normalizer = json.loads(tokenizer.backend_tokenizer.to_str()).get("normalizer")
    return source.tokenizer.core.normalizer is None and normalizer is not None and normalizer["type"] == "NFC"


def transformers_scores(model: Any, sequence: list[int]) -> list[float]:
    """log p(token | tokens before it) of each token but the first, by the library's own forward pass."""
    tokens = torch.tensor([sequence], device=model.device)
    scores = model(input_ids=tokens[:, :-1], use_cache=False).logits.float().log_softmax(-1)
    return scores.gather(-1, tokens[:, 1:, None])[0, :, 0].tolist()

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
    predicted_scores,
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
from fledge.model.protocol import LanguageModel
from fledge.model.saving import save_with_tokenizer
from fledge.run.text_files import write_and_verify
from fledge.tokenizer import Message

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
    theirs = [transformers_scores(model, sequence, source.model.decoder_start) for sequence in sequences]

    def ours(model: LanguageModel) -> list[list[float]]:
        return predicted_scores(source.tokenizer, sequences, score_tokens(model, sequences))

    same = difference(ours(load_model(folder)), theirs)
    check_difference(program, same, TOLERANCE, str(folder))
    drift = difference(ours(source.model), theirs)
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
        auto_class = getattr(transformers, source.model.auto_class)
        model = auto_class.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    except Exception as error:  # the library raises errors of many kinds
        raise FledgeError(f"transformers cannot load what was written: {first_line(error)}", where=str(folder)) from error
    composed = _only_theirs_composes(source, tokenizer)
    equal = check_all_tokens(
        PROGRAM,
        source.tokenizer,
        [tokenizer(text, add_special_tokens=False)["input_ids"] for text in tokenised_texts(source.tokenizer, composed)],
        [_their_prompt(tokenizer, messages, source.model.decoder_start) for messages in prompts(source.tokenizer)],
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


def _their_prompt(tokenizer: Any, messages: Sequence[Message], decoder_start: int | None) -> list[int]:
    """The tokens that the library makes of a conversation, by its chat template; for an encoder–decoder of the text, and the
    token that begins an answer."""
    if decoder_start is not None:
        return [*tokenizer(messages[0].content)["input_ids"], decoder_start]
    turns = [{"role": each.role, "content": each.content} for each in messages]
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]


def transformers_scores(model: Any, sequence: list[int], decoder_start: int | None) -> list[float]:
    """log p(token | tokens before it) of each token but the first, by the library's own forward pass; of an encoder–decoder,
    of each token behind the one that begins the answer."""
    inputs: dict[str, Any] = {"use_cache": False}
    if decoder_start is not None:
        source, sequence = sequence[: sequence.index(decoder_start)], sequence[sequence.index(decoder_start) :]
        inputs["input_ids"] = torch.tensor([source], device=model.device)
    tokens = torch.tensor([sequence], device=model.device)
    inputs["input_ids" if decoder_start is None else "decoder_input_ids"] = tokens[:, :-1]
    scores = model(**inputs).logits.float().log_softmax(-1)
    return scores.gather(-1, tokens[:, 1:, None])[0, :, 0].tolist()

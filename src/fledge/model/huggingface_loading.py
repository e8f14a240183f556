"""Loading model directories with the library transformers, which is imported then and not before.

No configuration says whether a model can be trained on packed rows, or whether its logits are hidden states times one
matrix. Both are tried out on a few tokens when a model is loaded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from fledge.errors import FledgeError, first_line, missing_extra
from fledge.model.cost import ModelCost
from fledge.model.hf_config import read_config_json
from fledge.model.huggingface import ATTENTION, TransformersModel, check_attention, nearest_config
from fledge.model.probe import is_near, probe_documents
from fledge.model.protocol import eval_mode
from fledge.model.weight_files import (
    HEAD,
    WeightHeaders,
    check_finite,
    check_sizes,
    check_type,
    own_head_error,
    read_headers,
    read_tensors,
    too_many_parameters,
)
from fledge.model.weights import read_generation_settings
from fledge.recipe.schema import ModelConfig, RuntimeConfig

LOCAL = {"local_files_only": True, "trust_remote_code": False}  # nothing is fetched, and no code of a model is run


def import_transformers(purpose: str) -> Any:
    """The library, without its progress bars and remarks. Raises FledgeError if it is not installed."""
    try:
        import transformers
    except ImportError:
        raise missing_extra("transformers", "hf", purpose) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


@dataclass(frozen=True)
class Bridge:
    """A family of architectures: the class of transformers that loads them, the `LanguageModel` around what it loads, sizes."""

    auto_class: str
    model: Callable[[Any], TransformersModel]
    sizes: Callable[[Any], ModelConfig]  # of a configuration of the library, in the recipe's names


CAUSAL = Bridge(TransformersModel.auto_class, TransformersModel, nearest_config)


def from_pretrained(folder: str | Path, finite: bool = True, bridge: Bridge = CAUSAL) -> TransformersModel:
    """A model directory as a model of transformers with float32 parameters.

    Raises FledgeError where the library is not installed, does not know the architecture or cannot load the files, where
    weights are missing, surplus, integers or, if `finite`, not finite, and where the model cannot be trained on packed
    documents.
    """
    folder = Path(folder)
    transformers = import_transformers(f"the model in {folder}")
    _check_settings(folder)
    headers = read_headers(folder)
    _check_size(folder, headers, bridge)
    try:
        causal_lm, report = getattr(transformers, bridge.auto_class).from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation=ATTENTION["sdpa"],
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report, and refused below
            use_safetensors=True,
            **LOCAL,
        )
    except Exception as error:  # the library raises errors of many kinds
        raise FledgeError(f"transformers cannot load it: {first_line(error)}", where=str(folder)) from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, report[kind])):
            problem = f"{kind.removesuffix('_keys')} {names[:3]}"
            raise FledgeError(f"the weights do not fit the architecture of transformers: {problem}", where=str(folder))
    _check_weights(causal_lm, headers.files, folder, finite)
    model = bridge.model(causal_lm)
    model.generation_settings = read_generation_settings(folder)
    if finite:
        check_forward(model, str(folder))
    return model


def _check_weights(causal_lm: Any, shards: list[Path], folder: Path, finite: bool) -> None:
    """FledgeError for weights of integers or not finite, which the library takes without a word, and for a head of its own in a
    model whose configuration ties it to the embedding. Configurations of encoder–decoders say nothing about it: newer versions
    of the library write that the head is tied where it is not, and find out from the weights."""
    parameters = {name for name, _ in causal_lm.named_parameters(remove_duplicate=False)}
    tied = causal_lm.config.get_text_config().tie_word_embeddings and not causal_lm.config.is_encoder_decoder
    for shard in shards:
        for name, tensor in read_tensors(shard):
            if name in parameters:
                check_type(name, tensor, shard)
            if name in parameters and finite:
                check_finite(name, tensor, shard)
            if name == HEAD and tied:
                embedding = causal_lm.get_input_embeddings().weight
                if tensor.shape != embedding.shape or not torch.equal(tensor.float(), embedding.float()):
                    raise own_head_error(folder)


def describe(folder: Path, bridge: Bridge = CAUSAL) -> ModelCost:
    """Sizes and exact parameters of a model directory, from its configuration alone. FledgeError as `from_pretrained`."""
    with torch.device("meta"):
        return new_model(folder, bridge).cost


def new_model(
    folder: Path,
    bridge: Bridge = CAUSAL,
    changes: Mapping[str, Any] = MappingProxyType({}),
    stored_bytes: int | None = None,
) -> TransformersModel:
    """A model of the architecture and the sizes in a config.json, with some keys changed, and with weights as the library draws
    them from PyTorch's generator, on torch's default device.

    FledgeError as `from_pretrained`, and if the weights could never be in `stored_bytes`: then no module is made."""
    transformers = import_transformers(f"the model in {folder}")
    _check_settings(folder)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **LOCAL)
        changed = config if config.is_encoder_decoder else config.get_text_config()  # of an encoder–decoder that is a copy
        for name, value in changes.items():
            setattr(changed, name, value)
    except Exception as error:  # the library raises errors of many kinds
        raise FledgeError(f"transformers cannot load it: {first_line(error)}", where=str(folder)) from error
    near = bridge.sizes(config)
    least = near.num_hidden_layers * near.hidden_size  # one vector in each layer
    if stored_bytes is not None and least > stored_bytes:
        raise too_many_parameters(least, stored_bytes, folder)
    try:
        library_model = getattr(transformers, bridge.auto_class).from_config(config, attn_implementation=ATTENTION["sdpa"])
    except Exception as error:  # the library raises errors of many kinds
        raise FledgeError(f"transformers cannot load it: {first_line(error)}", where=str(folder)) from error
    return bridge.model(library_model)


def _check_size(folder: Path, headers: WeightHeaders, bridge: Bridge) -> None:
    """FledgeError, before memory is allocated, for files that are too small for the model that config.json describes."""
    with torch.device("meta"):
        model = new_model(folder, bridge, stored_bytes=headers.bytes)
    check_sizes(headers, model.cost.parameters().total, folder)


def check_runtime(runtime: RuntimeConfig) -> None:
    """FledgeError for settings of the recipe's `runtime` that a model of transformers cannot follow."""
    if runtime.attention != "auto":
        check_attention(runtime.attention)


def _check_settings(folder: Path) -> None:
    """FledgeError for what a model that fledge trained has and no architecture of transformers computes."""
    dropout = read_config_json(folder).get("fledge", {}).get("dropout", 0.0)
    if dropout:
        raise FledgeError(
            f"this model is trained with a dropout of {dropout} on its residuals, which transformers does not have",
            where=str(folder),
            hint="set model.implementation to native or auto, or dropout in its config.json to 0",
        )


@torch.no_grad()
def check_forward(model: TransformersModel, folder: str) -> None:
    """Test a model on random tokens. Raises FledgeError if its logits are not hidden states times the head's matrix, or if a
    document in a packed row attends to another document."""
    name = type(model.causal_lm).__name__
    each, documents = probe_documents(model)
    try:
        with eval_mode(model):
            logits = torch.cat([model.library_logits(document) for document in each], dim=1)
            alone = torch.cat([model(document) for document in each], dim=1)
            product = model.logits(alone)
            packed = model(torch.cat(each, dim=1), None, documents)
    except Exception as error:  # the library raises errors of many kinds
        raise FledgeError(f"transformers cannot compute it: {first_line(error)}", where=folder) from error
    if not is_near(product, logits):
        raise FledgeError(f"not supported: the logits of {name} are not hidden states times one matrix", where=folder)
    if not is_near(packed, alone):
        raise FledgeError(f"not supported: {name} does not keep the documents of a packed row apart", where=folder)

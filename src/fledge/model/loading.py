"""The implementations of `LanguageModel`, and the choice between them for a model directory, by its config.json."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fledge.errors import FledgeError
from fledge.model import huggingface_loading, pretrained
from fledge.model.adapter_files import BASE, find_base, is_adapter, load_adapter_weights, read_adapter_config
from fledge.model.adapters import attach_adapter
from fledge.model.cost import ModelCost
from fledge.model.encoder_decoder import (
    check_encoder_decoder_runtime,
    describe_encoder_decoder,
    is_encoder_decoder,
    load_encoder_decoder,
)
from fledge.model.hf_config import NotCoveredError, read_config
from fledge.model.protocol import LanguageModel
from fledge.model.weight_files import weights_hash
from fledge.recipe.schema import RuntimeConfig
from fledge.tokenizer.settings import read_decoder_start

Log = Callable[[str], None]


@dataclass(frozen=True)
class Implementation:
    """The functions of one implementation: `load` a model directory (the flag: refuse values that are not finite); `describe`
    its cost from config.json alone; `check_runtime`, which raises FledgeError for unsupported settings of `runtime`."""

    load: Callable[[Path, bool], LanguageModel]
    describe: Callable[[Path], ModelCost]
    check_runtime: Callable[[RuntimeConfig], None]


def _describe_native(folder: Path) -> ModelCost:
    config, vocab_size = read_config(folder)
    return ModelCost(config, vocab_size)


def _load_native(folder: Path, finite: bool) -> LanguageModel:
    return pretrained.from_pretrained(folder, finite=finite)


def _follows_every_setting(runtime: RuntimeConfig) -> None:
    """The native decoder follows every setting that the machine can (`autotune.compute_config.check_device`)."""


IMPLEMENTATIONS: dict[str, Implementation] = {
    "native": Implementation(_load_native, _describe_native, _follows_every_setting),
    "transformers": Implementation(
        huggingface_loading.from_pretrained, huggingface_loading.describe, huggingface_loading.check_runtime
    ),
    "encoder-decoder": Implementation(load_encoder_decoder, describe_encoder_decoder, check_encoder_decoder_runtime),
}


@dataclass(frozen=True)
class ModelDescription:
    """The description of a model directory whose weights are not loaded. `decoder_start`: of an encoder–decoder, as in
    `LanguageModel`."""

    implementation: str
    cost: ModelCost
    decoder_start: int | None = None

    def check_runtime(self, runtime: RuntimeConfig) -> None:
        """FledgeError for settings of the recipe's `runtime` that the implementation cannot follow."""
        IMPLEMENTATIONS[self.implementation].check_runtime(runtime)


def _silent(text: str) -> None:
    """Log nothing."""


def choose_implementation(folder: Path, requested: str = "auto", log: Log = _silent) -> str:
    """The key in `IMPLEMENTATIONS` for a model directory: the requested one, or for `auto` the native decoder if it covers the
    model, else transformers, with a log line. Raises FledgeError without a readable config.json."""
    if requested == "native":
        return requested
    if requested == "auto":
        try:
            read_config(folder)
            return "native"
        except NotCoveredError as error:
            log(f"{folder}: {error.what}; the library transformers computes this model")
    return "encoder-decoder" if is_encoder_decoder(folder) else "transformers"


def load_model(
    folder: str | Path, implementation: str = "auto", log: Log = _silent, finite: bool = True, min_vocab_size: int = 0
) -> LanguageModel:
    """Load a model directory with float32 parameters on the CPU. Raises FledgeError if it cannot be loaded.

    `finite`: refuse values that are not finite. The guards of a run decide about those of its own checkpoints.
    `min_vocab_size`: tokens that it must have rows for; a smaller vocabulary grows."""
    folder = Path(folder)
    if is_adapter(folder):
        return _load_adapted(folder, implementation, log, finite)
    model = IMPLEMENTATIONS[choose_implementation(folder, implementation, log)].load(folder, finite)
    if model.vocab_size < min_vocab_size:
        model.grow_vocabulary(min_vocab_size)
    return model


def _load_adapted(folder: Path, implementation: str, log: Log, finite: bool) -> LanguageModel:
    """The base model of an adapter directory with the adapter on it. Raises FledgeError if the base has other weights than the
    adapter was trained on."""
    adapter = read_adapter_config(folder)
    base = find_base(folder, adapter.base)
    if is_adapter(base):
        raise FledgeError(
            "the base model of this adapter has an adapter itself", where=str(folder), hint="merge that one first"
        )
    if adapter.base_hash is not None and weights_hash(base) != adapter.base_hash:
        raise FledgeError(
            f"the adapter was trained on other weights than those in {base}",
            where=str(folder),
            hint=f"put the base model back as it was, or remove {folder / BASE} to use these",
        )
    model = load_model(base, implementation, log)
    attach_adapter(model, replace(adapter, base=base), seed=0)
    load_adapter_weights(model, folder, finite)
    return model


def describe_model(folder: Path, implementation: str = "auto", log: Log = _silent) -> ModelDescription:
    """Implementation, sizes, vocabulary and cost of the model in a directory. FledgeError as `load_model`."""
    if is_adapter(folder):
        folder = find_base(folder, read_adapter_config(folder).base)
    chosen = choose_implementation(folder, implementation, log)
    return ModelDescription(chosen, IMPLEMENTATIONS[chosen].describe(folder), read_decoder_start(folder))

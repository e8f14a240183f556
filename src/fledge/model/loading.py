"""The implementations of `LanguageModel`, and the choice between them for a model directory, by its config.json."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

from fledge.errors import FledgeError
from fledge.model import huggingface_loading, pretrained
from fledge.model.adapter_files import (
    BASE,
    CONFIG,
    find_base,
    gives_rewards,
    is_adapter,
    load_adapter_weights,
    read_adapter_config,
)
from fledge.model.adapter_switch import AdapterSwitch
from fledge.model.adapters import attach_adapter
from fledge.model.cost import ModelCost
from fledge.model.encoder_decoder import (
    check_encoder_decoder_runtime,
    describe_encoder_decoder,
    is_encoder_decoder,
    load_encoder_decoder,
)
from fledge.model.frozen_weights import dequantize_matrices, quantize_matrices
from fledge.model.hf_config import NotCoveredError, is_classifier, read_config
from fledge.model.protocol import Adapter, LanguageModel
from fledge.model.weight_files import weights_hash
from fledge.recipe.schema import QuantizationConfig, RuntimeConfig
from fledge.run.console import Log, silent
from fledge.tokenizer.settings import read_decoder_start

Purpose = Literal["language", "rewards", "any"]
"""What a model is to be: one that writes, one that gives rewards, or either."""


@dataclass(frozen=True)
class Implementation:
    """The functions of one implementation: `load` a model directory (the flag: refuse values that are not finite; the settings:
    keep matrices in 4 bits); `describe`
    its cost from config.json alone; `check_runtime`, which raises FledgeError for unsupported settings of `runtime`.
    `no_branches_because`: why documents of a packed row cannot share their beginning (`document_numbers`); None: they can."""

    load: Callable[[Path, bool, QuantizationConfig | None], LanguageModel]
    describe: Callable[[Path], ModelCost]
    check_runtime: Callable[[RuntimeConfig], None]
    no_branches_because: str | None = None


def _describe_native(folder: Path) -> ModelCost:
    config, vocab_size = read_config(folder)
    return ModelCost(config, vocab_size, has_lm_head=not is_classifier(folder))


def _load_native(folder: Path, finite: bool, quantization: QuantizationConfig | None) -> LanguageModel:
    return pretrained.from_pretrained(folder, finite=finite, quantization=quantization)


def _whole_then_quantized(load: Callable[[Path, bool], LanguageModel]) -> Callable[..., LanguageModel]:
    """A function that loads a model in float32 first, and then keeps its matrices in 4 bits if that is asked for."""

    def quantized(folder: Path, finite: bool, quantization: QuantizationConfig | None) -> LanguageModel:
        model = load(folder, finite)
        if quantization is not None:
            quantize_matrices(model, quantization)
        return model

    return quantized


def _follows_every_setting(runtime: RuntimeConfig) -> None:
    """The native decoder follows every setting that the machine can (`autotune.compute_config.check_device`)."""


IMPLEMENTATIONS: dict[str, Implementation] = {
    "native": Implementation(_load_native, _describe_native, _follows_every_setting),
    "transformers": Implementation(
        _whole_then_quantized(huggingface_loading.from_pretrained),
        huggingface_loading.describe,
        huggingface_loading.check_runtime,
        "transformers, which computes this model, keeps documents apart by their positions alone",
    ),
    "encoder-decoder": Implementation(
        _whole_then_quantized(load_encoder_decoder),
        describe_encoder_decoder,
        check_encoder_decoder_runtime,
        "an encoder–decoder computes sources and answers apart",
    ),
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

    @property
    def no_branches_because(self) -> str | None:
        """As in `Implementation`."""
        return IMPLEMENTATIONS[self.implementation].no_branches_because


def choose_implementation(folder: Path, requested: str = "auto", log: Log = silent) -> str:
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


def is_reward_model(folder: Path) -> bool:
    """Whether a model directory, or an adapter, gives rewards. FledgeError without a readable configuration."""
    return gives_rewards(folder) if is_adapter(folder) else is_classifier(folder)


def check_purpose(folder: Path, purpose: Purpose) -> None:
    """Raise FledgeError for a reward model where a model that writes is needed, and the reverse."""
    if purpose == "any" or is_reward_model(folder) == (purpose == "rewards"):
        return
    if purpose == "language":
        raise FledgeError(
            "this is a reward model: it gives a number for an answer, and writes none",
            where=str(folder),
            hint="name the model that writes; this one can be a reward of a grpo stage, or choose answers: fledge score "
            "--reward-model",
        )
    raise FledgeError(
        "this is a language model and no reward model: it has no head that gives one number",
        where=str(folder),
        hint="train a reward model on pairs with a stage of kind reward; a model that a preference stage has trained is none",
    )


def load_model(
    folder: str | Path,
    implementation: str = "auto",
    log: Log = silent,
    *,
    purpose: Purpose = "language",
    finite: bool = True,
    min_vocab_size: int = 0,
    quantization: QuantizationConfig | None = None,
) -> LanguageModel:
    """Load a model directory with float32 parameters on the CPU. Raises FledgeError if it cannot be loaded, and if it is not
    what `purpose` says.

    `finite`: refuse values that are not finite. The guards of a run decide about those of its own checkpoints.
    `min_vocab_size`: tokens that it must have rows for; a smaller vocabulary grows.
    `quantization`: keep the matrices of the blocks in 4 bits, those beside an adapter too."""
    folder = Path(folder)
    check_purpose(folder, purpose)
    if is_adapter(folder):
        return _load_adapted(folder, implementation, log, finite, quantization)
    model = IMPLEMENTATIONS[choose_implementation(folder, implementation, log)].load(folder, finite, quantization)
    if model.vocab_size < min_vocab_size:
        model.grow_vocabulary(min_vocab_size)
    return model


def _load_adapted(
    folder: Path, implementation: str, log: Log, finite: bool, quantization: QuantizationConfig | None
) -> LanguageModel:
    """The base model of an adapter directory with the adapter on it. An adapter that was trained beside weights in 4 bits gets
    these numbers, in float32 unless `quantization` asks for 4 bits. Raises FledgeError if the base has other weights than the
    adapter was trained on."""
    adapter, base = read_adapter_config(folder), base_directory(folder)
    if quantization is not None and adapter.quantization != quantization:
        before, now = _numbers(adapter.quantization), _numbers(quantization)
        log(f"note: the adapter was trained beside {before}, and goes on beside {now}")
    _check_base(folder, adapter, base, weights_hash)
    rewards = gives_rewards(folder)
    purpose = "any" if rewards else "language"
    if quantization is None:
        model = _load_base(base, implementation, log, purpose, adapter.quantization)
    else:
        model = load_model(base, implementation, log, purpose=purpose, quantization=quantization)
    if rewards and model.score_weight is None:
        model.become_reward_model(seed=0)  # the adapter has the head
    _attach(folder, replace(adapter, base=base), model, finite)
    return model


def _numbers(quantization: QuantizationConfig | None) -> str:
    """Which numbers the matrices of a base model have, in words."""
    return "the numbers of its files" if quantization is None else f"matrices rounded to {quantization.quant_type}"


def base_directory(folder: Path) -> Path:
    """The directory of the base model of an adapter directory. FledgeError if it is not there or is an adapter itself."""
    base = find_base(folder, read_adapter_config(folder))
    if is_adapter(base):
        raise FledgeError(
            "the base model of this adapter has an adapter itself", where=str(folder), hint="merge that one first"
        )
    return base


def _check_base(folder: Path, adapter: Adapter, base: Path, hash_of: Callable[[Path], str]) -> None:
    """FledgeError for a base model with other weights than those that the adapter says it was trained on."""
    if adapter.base_hash is not None and hash_of(base) != adapter.base_hash:
        raise _other_base(folder, base, f"put the base model back as it was, or remove {folder / BASE} to use these")


def _other_base(folder: Path, base: Path, hint: str) -> FledgeError:
    return FledgeError(f"the adapter was trained on other weights than those in {base}", where=str(folder), hint=hint)


def _attach(folder: Path, adapter: Adapter, model: LanguageModel, finite: bool = True) -> None:
    """Put the adapter of a directory on its base model."""
    with _named_file(folder):
        attach_adapter(model, adapter, seed=0)
    load_adapter_weights(model, folder, finite)


@contextmanager
def _named_file(folder: Path) -> Iterator[None]:
    """A context in which errors about keys of a recipe's `adapter` name the file of an adapter directory instead."""
    try:
        yield
    except FledgeError as error:
        section, _, key = (error.where or "").partition(".")
        if section != "adapter":
            raise
        raise FledgeError(f"{key}: {error.what}", where=str(folder / CONFIG), hint=error.hint) from None


def load_switch(folder: Path, adapters: Mapping[str, Path], implementation: str = "auto", log: Log = silent) -> AdapterSwitch:
    """The base model in `folder` with adapters from directories, by name; none of them is in use yet.

    Raises FledgeError for an adapter that does not fit the base, or that was trained on other weights."""
    read = {name: read_adapter_config(source) for name, source in adapters.items()}
    base = _load_base(folder, implementation, log, quantization=_common_quantization(read, adapters))
    switch, hash_of = AdapterSwitch(base), cache(weights_hash)
    for name, source in adapters.items():
        check_purpose(source, "language")
        _check_switched(source, read[name], folder, hash_of, log)
        with _named_file(source):
            switch.add(name, replace(read[name], base=folder), partial(_attach, source))
    return switch


def _common_quantization(read: Mapping[str, Adapter], folders: Mapping[str, Path]) -> QuantizationConfig | None:
    """How the base was rounded where these adapters were trained. FledgeError where it was not the same for all."""
    names = list(read)
    for name in names[1:]:
        first, other = read[names[0]].quantization, read[name].quantization
        if first != other:
            raise FledgeError(
                f"it was trained beside {_numbers(other)}, and {names[0]} beside {_numbers(first)}: these are two base models",
                where=str(folders[name]),
                hint="use one of them at a time, or merge one: fledge export --to merged",
            )
    return read[names[0]].quantization if names else None


def _load_base(
    folder: Path, implementation: str, log: Log, purpose: Purpose = "language", quantization: QuantizationConfig | None = None
) -> LanguageModel:
    """A base model with the numbers that an adapter was trained beside, in float32."""
    model = load_model(folder, implementation, log, purpose=purpose, quantization=quantization)
    if quantization is not None:
        dequantize_matrices(model)
        log(f"the base model has {_numbers(quantization)}, as where its adapter was trained")
    return model


def _check_switched(folder: Path, adapter: Adapter, base: Path, hash_of: Callable[[Path], str], log: Log) -> None:
    """FledgeError for an adapter of another base model than the one in `base`, as far as it says what it was trained on."""
    if adapter.base_hash is not None:
        if hash_of(base) != adapter.base_hash:
            raise _other_base(folder, base, f"its base model was {adapter.base}; use it with that one")
        return
    try:
        own = find_base(folder, adapter)
    except FledgeError:
        return log(f"note: {folder} names no base model that is here; it is used with {base}")
    if own.resolve() != base.resolve() and hash_of(own) != hash_of(base):
        raise _other_base(folder, base, f"it names {own} as its base model; use it with that one")


def describe_model(
    folder: Path, implementation: str = "auto", log: Log = silent, *, purpose: Purpose = "language"
) -> ModelDescription:
    """Implementation, sizes, vocabulary and cost of the model in a directory. FledgeError as `load_model`."""
    check_purpose(folder, purpose)
    if is_adapter(folder):
        folder = base_directory(folder)
    chosen = choose_implementation(folder, implementation, log)
    return ModelDescription(chosen, IMPLEMENTATIONS[chosen].describe(folder), read_decoder_start(folder))

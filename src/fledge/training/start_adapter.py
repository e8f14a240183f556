"""The adapter of a stage at its beginning: new, that of the stage before, or merged into the weights."""

from collections.abc import Callable
from pathlib import Path

from fledge.errors import FledgeError
from fledge.model.adapter_files import with_score
from fledge.model.adapters import attach_adapter, check_patterns, has_same_adapter, merge_adapter, trained_parameters
from fledge.model.frozen_weights import describe_quantized
from fledge.model.protocol import Adapter, LanguageModel
from fledge.model.weight_files import weights_hash
from fledge.recipe.schema import AdapterConfig
from fledge.recipe.sections.adapter import PREFIX


def merge_start_adapter(model: LanguageModel, *, folder: Path, vocab_size: int, log: Callable[[str], None]) -> None:
    """For a stage without an adapter: merge that of its start model, loaded from `folder`, if it has one, and give the model
    rows for `vocab_size` tokens. Raises FledgeError for a prefix."""
    if model.adapter is None:
        return
    merge_adapter(model)
    if model.vocab_size < vocab_size:
        model.grow_vocabulary(vocab_size)
    log(f"the adapter in {folder} is merged into the weights, which this stage trains")


def start_adapter(
    model: LanguageModel,
    config: AdapterConfig,
    *,
    folder: Path,
    vocab_size: int,
    max_seq_len: int,
    seed: int,
    log: Callable[[str], None],
) -> None:
    """Give the start model of a stage, loaded from `folder`, the adapter of the stage.

    A model that comes with an adapter of the same settings goes on with it. Raises FledgeError for other settings, and where
    the frozen model has no rows for `vocab_size` tokens or no positions for sequences of `max_seq_len` tokens.
    """
    config = config if model.score_weight is None else with_score(config)
    if model.vocab_size < vocab_size:
        raise FledgeError(
            f"the model has rows for {model.vocab_size:,} tokens, the tokenizer has {vocab_size:,}: an adapter cannot add rows",
            where=str(folder),
            hint="leave tokenizer.special_tokens out, or train the weights (no adapter) in a stage before",
        )
    if model.adapter is None:
        check_patterns(model, config)
        attach_adapter(model, Adapter(config, folder.resolve(), weights_hash(folder)), seed)
    elif not has_same_adapter(model, config):
        raise FledgeError(
            f"the model in {folder} has an adapter with other settings",
            where="adapter",
            hint="write the same adapter section as in the stage before, to go on with it, or merge it first",
        )
    if config.peft_type == PREFIX and max_seq_len > model.max_positions:
        raise FledgeError(
            f"the model has {model.max_positions:,} positions behind the {config.num_virtual_tokens:,} virtual tokens, and "
            f"sequences have up to {max_seq_len:,} tokens",
            where="adapter.num_virtual_tokens",
            hint="write fewer of them, or a smaller data.max_seq_len",
        )
    _describe(model, log)


def _describe(model: LanguageModel, log: Callable[[str], None]) -> None:
    """Log how many parameters are trained, and how many of the others are in 4 bits."""
    if (quantized := describe_quantized(model)) is not None:
        log(quantized)
    trained, total = trained_parameters(model)
    log(f"adapter: {trained:,} of {total:,} parameters are trained ({trained / total:.2%})")

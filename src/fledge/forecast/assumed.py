"""What is not at hand: packed rows of a number of tokens, and the size of a model whose tokenizer is not there yet. With them
a recipe can be planned nevertheless."""

import numpy as np

from fledge.data import FORMATS, PackedDataset
from fledge.data.storage import Examples, UniformWeights
from fledge.errors import FledgeError
from fledge.model.cost import ModelCost
from fledge.model.loading import describe_model
from fledge.prepare import Preparation
from fledge.recipe.schema import Stage
from fledge.recipe.units import Duration

OPTION = "--tokens"
MAX_ROWS = 200_000_000  # the arrays of a plan would not fit into memory


def parse_tokens(texts: list[str], stages: list[str]) -> dict[str, int]:
    """The tokens of an epoch of each stage: `256M` for all stages, or `sft=20M` for one.

    Raises FledgeError for a text that is no number of tokens, and for an unknown stage.
    """
    found: dict[str, int] = {}
    for text in texts:
        stage, equals, number = text.rpartition("=")
        stage, amount = stage.strip(), _amount(number)
        if not equals:
            found |= {name: amount for name in stages if name not in found}
        elif stage in stages:
            found[stage] = amount
        else:
            raise FledgeError(f"the recipe has no stage '{stage}'", where=OPTION, hint=f"its stages: {', '.join(stages)}")
    if missing := [name for name in stages if name not in found]:
        raise FledgeError(f"nothing is said about stage {missing[0]}", where=OPTION, hint=f"add {OPTION} {missing[0]}=20M")
    return found


def _amount(text: str) -> int:
    try:
        return int(Duration.parse(f"{text.strip()} tokens").amount)
    except ValueError:
        raise FledgeError(f"'{text}' is no number of tokens", where=OPTION, hint="write such as 256M, or sft=20M") from None


def assumed_rows(stage: Stage, tokens: int, seed: int) -> PackedDataset:
    """Full packed rows that hold `tokens` tokens, each one supervised; a row is one example, whose sequences have `max_seq_len`
    positions.

    Real rows have padding, and prompts without supervision: the plan is then on the upper side. Raises FledgeError for more
    rows than can be planned. Nothing is stored for a token.
    """
    of_sequence, per_example = stage.data.max_seq_len, FORMATS[stage.kind].sequences_per_example
    length = FORMATS[stage.kind].packed_length(of_sequence)
    rows = max(1, round(tokens / length))
    if rows > MAX_ROWS:
        raise FledgeError(f"{tokens:,} tokens are {rows:,} rows: more than a plan can hold", where=OPTION,
                          hint="plan for a part of them, and multiply")  # fmt: skip
    count = rows * per_example
    examples = Examples(
        tokens=np.broadcast_to(np.zeros(1, np.int32), (count * (of_sequence + 1),)),
        weights=UniformWeights(count * (of_sequence + 1)),
        offsets=np.arange(count + 1, dtype=np.int64) * (of_sequence + 1),
        sequences_per_example=per_example,
        digest="assumed",
        source=np.zeros(rows, np.int32),
        counted_target_tokens=np.full(count, of_sequence, np.int64),
    )
    return PackedDataset(examples, length, 0, seed, split_documents=False, packs=False, sources=("assumed",))


def assumed_cost(preparation: Preparation, name: str, vocab_size: int) -> ModelCost:
    """Sizes and cost of a stage's model, as `Preparation.model_cost`, for a tokenizer of `vocab_size` tokens that is not there
    yet. Raises FledgeError for a directory that has no model."""
    recipe, weights = preparation.recipe, preparation.start_models.of_stage(name)
    path, gives_reward = weights.config_directory, recipe.stages[name].trains_reward_model
    if path is None:
        cost = ModelCost(recipe.model, vocab_size)
    else:
        purpose = "any" if gives_reward else "language"
        cost = describe_model(path, recipe.model.implementation, preparation.log, purpose=purpose).cost
        first = preparation.start_models.of_stage(next(iter(recipe.stages)))
        is_new = first.are_fresh and path == first.config_directory
        cost = cost.with_vocabulary(vocab_size if is_new else max(cost.vocab_size, vocab_size))
    return cost.of_reward_model() if gives_reward else cost

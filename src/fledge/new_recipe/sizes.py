"""The sizes of a recipe for given data: vocabulary, context, model, passes over the data, and the time that they take.

Tokens are estimated from characters, because there is no tokenizer yet. Constants without a source are chosen by fledge.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fledge.data.formats import FORMATS
from fledge.model.cost import parameters, training_flops_per_token
from fledge.new_recipe.data_files import TRAINING, Amount, DataFile
from fledge.new_recipe.kinds import RULES
from fledge.plan.estimate import MFU, seconds_of
from fledge.plan.horizon import batch_for_updates
from fledge.recipe.schema import ModelConfig

SHAPES = ((128, 4, 4, 2, 384), (256, 4, 4, 2, 704), (384, 6, 6, 2, 1024), (512, 8, 8, 2, 1408), (768, 12, 12, 4, 2048))
"""Width, layers, heads, key-value heads, and width of the feed-forward layer; heads of 32 or 64 dimensions."""
VOCABULARIES = (1024, 2048, 4096, 6400, 8192, 16_384, 32_000)
SMALL_VOCABULARY = 6400  # any model may have it
CHARACTERS_PER_ENTRY = 150  # of the data: a token that occurs too seldom is not learned
WORD_PIECES = 1200  # entries for bytes, control tokens and pieces of words, beside Chinese characters
HAN_PER_TOKEN = {1024: 0.6, 2048: 0.75, 4096: 1.0, 6400: 1.1, 8192: 1.15, 16_384: 1.3, 32_000: 1.5}
OTHER_PER_TOKEN = {1024: 2.2, 2048: 2.6, 4096: 3.0, 6400: 3.3, 8192: 3.4, 16_384: 3.8, 32_000: 4.2}
CONTEXTS = (64, 128, 256, 512, 1024, 2048)
TEXT_CONTEXTS = (256, 512)  # of texts, which go on in the next row: at least and at most
FITTING = 0.95  # of the rows fit into the context
TURN_TOKENS = 6  # of the template, for a turn
TOKENS_PER_PARAMETER = 20  # how a given time is best used (Hoffmann et al. 2022)
PARAMETERS_PER_TOKEN = 4.0  # seen in training, at most: the quickstart's model has 1.4
FEW_ROWS = 2000
FEWEST_TO_DIVIDE = 5  # different rows: of fewer, none is kept to measure with
VALIDATION_ROWS, MOST_VALIDATION = 40, 0.15


@dataclass(frozen=True, kw_only=True)
class StageSizes:
    """The sizes of a stage. `tokens`: of one pass over its data, `rows`: of its files. `passes`: over the data, below 1 for a
    part of it. `updates`: optimizer steps."""

    kind: str
    tokens: float
    rows: int
    passes: float
    context: int
    micro_batch: int
    updates: int
    validation: float
    longer: float

    @property
    def learned_by_heart(self) -> bool:
        """Whether so few conversations are read so often that the model knows them in the end. Held-out ones then get no
        better long before that."""
        return RULES[self.kind].by_heart and self.rows < FEW_ROWS

    @property
    def seen(self) -> float:
        """Tokens that are trained on, passes over the same counted again."""
        return self.tokens * self.passes


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of a recipe. `known_han`: different Chinese characters that occur often enough to be learned. `seconds`: of
    training on this machine."""

    vocab_size: int
    known_han: int
    model: ModelConfig
    parameters: int
    stages: Mapping[str, StageSizes]
    seconds: float


def amount_of(files: Sequence[DataFile]) -> Amount:
    """The characters of all files."""
    total = Amount()
    for file in files:
        total.update(file.amount, file.scale)
    return total


def vocabulary_for(amount: Amount, parameters: float = math.inf) -> int:
    """The size of a vocabulary: room for the Chinese characters that occur, and for pieces of words, as far as the data can
    teach so many tokens; for a model of so many parameters not so large that its table is most of them."""
    pieces = WORD_PIECES + (1.3 * amount.known_han if amount.known_han else min(5000, amount.other / 400))
    wanted = min(pieces, max(VOCABULARIES[0], amount.characters / CHARACTERS_PER_ENTRY))
    if amount.characters > 50_000_000:  # larger pieces of more text
        wanted = max(wanted, VOCABULARIES[-2 if amount.characters < 1_000_000_000 else -1])
    most = max(SMALL_VOCABULARY, parameters / SHAPES[1][0])
    allowed = [size for size in VOCABULARIES if size <= most]
    return next((size for size in allowed if size >= wanted), allowed[-1])


def tokens_of(han: float, other: float, vocab_size: int) -> float:
    """The tokens of a text with so many Chinese and other characters, about."""
    nearest = min(HAN_PER_TOKEN, key=lambda size: abs(math.log(size / vocab_size)))
    return han / HAN_PER_TOKEN[nearest] + other / OTHER_PER_TOKEN[nearest]


def choose_sizes(kinds: Mapping[str, Sequence[DataFile]], seconds: float, flops: float, largest_batch: int) -> Sizes:
    """The sizes of a recipe that trains for at most so many seconds at `flops` FLOP/s of the fastest matrix product.

    The model is the largest that has time for all passes over its data, or that is not larger than the time is best used for;
    never one that is too large for its data. `kinds`: kind of stage → its files. `largest_batch`: rows computed at a time."""
    optimal = math.sqrt(seconds * MFU * flops / (6 * TOKENS_PER_PARAMETER))
    amount = amount_of([file for files in kinds.values() for file in files])
    vocab_size = vocabulary_for(amount, optimal)
    measured = {kind: _measured(kind, files, vocab_size) for kind, files in kinds.items()}
    context = max(one.context for one in measured.values())
    seen = sum(one.seen for one in measured.values())
    model, needed = _model(SHAPES[0], context), 0.0
    for shape in SHAPES:
        larger = _model(shape, context)
        count, time = parameters(larger, vocab_size).total, _seconds(measured, larger, vocab_size, flops)
        if shape == SHAPES[0] or (count <= PARAMETERS_PER_TOKEN * seen and (time <= seconds or count <= optimal)):
            model, needed = larger, time
    stages = {kind: _stage(one, min(1.0, seconds / needed), largest_batch) for kind, one in measured.items()}
    total = _seconds(stages, model, vocab_size, flops)
    return Sizes(
        vocab_size=vocab_size,
        known_han=amount.known_han,
        model=model,
        parameters=parameters(model, vocab_size).total,
        stages=stages,
        seconds=total,
    )


def _model(shape: tuple[int, ...], context: int) -> ModelConfig:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    sizes = dict(zip(names, shape, strict=True))
    return ModelConfig.model_validate({**sizes, "max_position_embeddings": context, "qk_norm": True})


def _seconds(stages: Mapping[str, StageSizes], model: ModelConfig, vocab_size: int, flops: float) -> float:
    work = sum(one.seen * training_flops_per_token(model, vocab_size, one.context) for one in stages.values())
    return seconds_of(work, flops)


def _measured(kind: str, files: Sequence[DataFile], vocab_size: int) -> StageSizes:
    """A stage as its training data would have it, before the time is known."""
    files = [file for file in files if file.purpose == TRAINING]
    each = [(file.scale, _row_tokens(kind, one, vocab_size)) for file in files for one in file.lengths]
    lengths = sorted(length for _, length in each)
    rows, sequences = sum(round(file.used * file.scale) for file in files), FORMATS[kind].sequences_per_example
    tokens = sequences * sum(scale * length for scale, length in each)
    fitting = lengths[min(len(lengths) - 1, int(FITTING * len(lengths)))]
    context = next((size for size in CONTEXTS[1:] if size >= fitting), CONTEXTS[-1])
    goes_on, rules = FORMATS[kind].splits_documents, RULES[kind]
    if goes_on:  # in the next row
        context = min(max(context, TEXT_CONTEXTS[0]), TEXT_CONTEXTS[1])
    longer = 0.0 if goes_on else sum(one > context for one in lengths) / len(lengths)
    passes = min(rules.most_passes, max(rules.least_passes, rules.wanted / (tokens if goes_on else rows)))
    distinct = len(set().union(*(file.distinct for file in files)))
    share = min(MOST_VALIDATION, max(0.02, VALIDATION_ROWS / rows))
    return StageSizes(
        kind=kind,
        tokens=tokens,
        rows=rows,
        passes=float(round(passes)) if passes >= 1 else passes,
        context=context,
        micro_batch=1,
        updates=0,
        validation=share if distinct >= FEWEST_TO_DIVIDE else 0.0,
        longer=longer,
    )


def _row_tokens(kind: str, length: tuple[int, int, int], vocab_size: int) -> float:
    """The tokens of a sequence, about."""
    han, other, turns = length
    return tokens_of(han, other, vocab_size) + (1 if FORMATS[kind].splits_documents else TURN_TOKENS * turns)


def _stage(measured: StageSizes, share: float, largest_batch: int) -> StageSizes:
    """The stage with passes that fit into the time, and a batch for them."""
    passes = measured.passes * share
    passes = float(math.floor(passes)) if passes >= 2 else float(f"{passes:.2g}")
    rows = measured.tokens * passes / FORMATS[measured.kind].packed_length(measured.context)
    batch = batch_for_updates(rows, measured.kind, largest_batch)
    updates = max(1, round(rows / batch))
    return replace(measured, passes=passes, micro_batch=batch, updates=updates)

"""All figures of the data of one stage."""

from pathlib import Path

import numpy as np

from fledge.data import PackedDataset, StageDataset
from fledge.data.build.directory import PLAN_FILE
from fledge.data.formats import FORMATS
from fledge.data.parsing.items import Conversation
from fledge.data.storage import ConcatenatedArrays, Examples
from fledge.diagnosis.case import Figure
from fledge.diagnosis.data_figures import ConversationShape, ReadSequences, batch_figures, read_sequences
from fledge.diagnosis.data_figures.conversation_shape import Answers
from fledge.diagnosis.data_figures.entropy import entropy_figures
from fledge.diagnosis.data_figures.order import order_figures
from fledge.diagnosis.data_figures.pairs import has_pairs, pair_figures
from fledge.diagnosis.data_figures.prompt_fit import misplaced_answers, prompt_fit
from fledge.diagnosis.data_figures.repeats import duplicate_figures, largest_answer, repeated_ngrams
from fledge.diagnosis.data_figures.roles import AnswerRules, role_figures, trained_answers
from fledge.doctor.data_figures.built_tokens import built_token_figures, longer_texts
from fledge.doctor.data_figures.loading import UpdateSize, data_folder, load_stage_data, read_batches
from fledge.doctor.data_figures.rows import built_figures, rows_again
from fledge.doctor.data_figures.template import serving_folder, template_figures
from fledge.errors import FledgeError
from fledge.evaluate.metrics.identity import recites_identity
from fledge.recipe import Recipe
from fledge.run import StageDirectory
from fledge.tokenizer import Tokenizer, load_tokenizer

MOST_SCANNED = 20_000_000  # tokens of which the largest is looked for
MOST_DECODED = 500  # answers that are read for who the model says it is


def data_figures(stage: StageDirectory, recipe: Recipe | None, *, sample: int = 2000, seed: int = 7) -> dict[str, Figure]:
    """The `data/…` figures of a stage of a run, from the data that it was built with, as its loader reads them.

    `recipe`: of the run; it says where the data are if they were built before. `sample`: examples, the first ones that training
    reads, of which most figures are computed; their notes say so. `seed`: of the shuffled orders that the order is compared
    with. Nothing is written. Raises FledgeError where the data are not there, not complete or damaged.
    """
    data, tokenizer = load_stage_data(stage, recipe)
    earlier = _conversations(stage, recipe) if has_pairs(data.plan.format) else None
    size = UpdateSize.of(stage)
    return dataset_figures(
        data, tokenizer, size=size, conversations=earlier, serving=serving_folder(stage), sample=sample, seed=seed
    )


def dataset_figures(
    data: StageDataset,
    tokenizer: Tokenizer,
    *,
    size: UpdateSize | None = None,
    conversations: Examples | None = None,
    serving: Path | None = None,
    sample: int = 2000,
    seed: int = 7,
) -> dict[str, Figure]:
    """The same of data at hand. `conversations`: training data of an earlier stage of conversations, for pairs. `serving`: the
    folder of the tokenizer that answers; None: `tokenizer`."""
    plan, train = data.plan, data.train
    batches = read_batches(train, size or UpdateSize(), sample)
    read = read_sequences(batches, train.examples, splits=plan.format.splits_documents)
    validation = None if data.validation is None else data.validation.examples
    figures = {
        **_sizes(data, tokenizer),
        **batch_figures(batches, read),
        **duplicate_figures(train.examples, validation),
        **repeated_ngrams(read),
        **entropy_figures(read, tokenizer.vocab_size),
        **order_figures(batches, train.examples, seed),
        **_sources(train),
    }
    if not plan.format.is_dialogue:
        return figures
    shape, rules = ConversationShape.of(tokenizer), AnswerRules.of(plan)
    again, untold = rows_again(data, tokenizer)
    trained = trained_answers(read, shape, rules)
    figures |= role_figures(read, shape, rules) | _answers(read, trained, tokenizer)
    figures |= built_figures(again, untold) | template_figures(again, tokenizer, serving)
    figures |= built_token_figures(again, tokenizer) | longer_texts(again)
    figures |= prompt_fit(read, trained) | misplaced_answers(read, trained, train.examples.count)
    return figures | (pair_figures(train.examples, shape, conversations) if has_pairs(plan.format) else {})


def _sizes(data: StageDataset, tokenizer: Tokenizer) -> dict[str, Figure]:
    """Counts of examples and tokens, and the largest token."""
    examples, sources = data.train.examples, data.report.sources
    train = [report for planned, report in zip(data.plan.sources, sources, strict=True) if planned.split == "train"]
    used = sum(report.used_rows for report in train)
    largest, scanned = _largest_token(examples)
    values = {
        "data/examples": (examples.count, ""),
        "data/vocab_size": (tokenizer.vocab_size, ""),
        "data/max_token_id": (largest, f"{scanned:,} tokens"),
        "data/mean_length": (float(np.diff(examples.offsets).sum() / max(1, examples.count)), ""),
        "data/truncated_share": (sum(report.truncated_rows for report in train) / max(1, used), f"{used:,} rows"),
    }
    return {name: Figure(value, "data", note=note) for name, (value, note) in values.items()}


def _largest_token(examples: Examples) -> tuple[int, int]:
    """(largest token id, tokens that were looked at)."""
    stream = examples.tokens
    arrays = stream.arrays if isinstance(stream, ConcatenatedArrays) else (stream,)
    largest, scanned = -1, 0
    for array in arrays:
        part = array[: MOST_SCANNED - scanned]
        if len(part):
            largest, scanned = max(largest, int(part.max())), scanned + len(part)
    return largest, scanned


def _sources(train: PackedDataset) -> dict[str, Figure]:
    """`data/largest_source_share` of the examples of the first epoch, where there are several sources."""
    source = train.examples.source
    if source is None:
        return {}
    drawn = source if train.mixture is None else source[train.mixture.sample_epoch(0)]
    counts = np.bincount(drawn)
    if np.count_nonzero(counts) < 2:
        return {}
    largest = int(counts.argmax())
    name = train.sources[largest] if largest < len(train.sources) else str(largest)
    note = f"{name}, of {np.count_nonzero(counts)} sources"
    return {
        "data/largest_source_share": Figure(float(counts.max() / counts.sum()), "data", note=note),
        "data/largest_source_rows": Figure(float(np.mean(source == largest)), "data", note=note),
    }


def _answers(read: ReadSequences, answers: Answers, tokenizer: Tokenizer) -> dict[str, Figure]:
    """The share of the commonest answer, and of those that say who the model is."""
    figures = largest_answer(read, answers)
    few = answers.chosen(read.is_main[answers.sequence]).sampled(MOST_DECODED)
    if not len(few):
        return figures
    spans = zip(few.start.tolist(), (few.stop - few.ended).tolist(), strict=True)
    says = [recites_identity(tokenizer.decode(read.tokens[start:stop].tolist())) for start, stop in spans]
    return figures | {"data/identity_share": Figure(float(np.mean(says)), "data", note=f"{len(says):,} answers")}


def _conversations(stage: StageDirectory, recipe: Recipe | None) -> Examples | None:
    """The training data of the nearest earlier stage of conversations of the same run, if it was built with the same tokenizer;
    None if there is none."""
    if recipe is None:
        return None
    names = list(recipe.stages)
    earlier = names[: names.index(stage.root.name)] if stage.root.name in names else []
    own = load_tokenizer(data_folder(stage, recipe) / "tokenizer", needs_template=False).fingerprint()
    for name in reversed(earlier):
        if Conversation not in FORMATS[recipe.stages[name].kind].item_types:
            continue
        other = StageDirectory(stage.root.parent / name)
        if not (data_folder(other, recipe) / PLAN_FILE).exists():
            continue
        try:
            data, tokenizer = load_stage_data(other, recipe)
        except FledgeError:
            continue
        if tokenizer.fingerprint() == own:
            return data.train.examples
    return None

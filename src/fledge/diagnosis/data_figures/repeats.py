"""What repeats in training data: whole examples, runs of tokens, answers; and what stands in the validation data too."""

import numpy as np

from fledge.data.storage import Examples
from fledge.diagnosis.case import Figure
from fledge.diagnosis.data_figures.conversation_shape import Answers
from fledge.diagnosis.data_figures.hashes import example_hashes, hash_of, is_copy, window_hashes
from fledge.diagnosis.data_figures.reading import ReadSequences

MOST_HASHED = 200_000  # examples
GRAM = 13  # tokens of a run: the length by which overlap with evaluation data is usually told (Brown et al. 2020, appendix C)
FEWEST = 20  # examples of which something can be said
FREQUENT = 0.02  # of the examples: an answer that so many have is one of few classes


def duplicate_figures(train: Examples, validation: Examples | None, most: int = MOST_HASHED) -> dict[str, Figure]:
    """`data/duplicate_share` and `data/validation_overlap`, of whole examples, token by token; `most`: examples that are
    compared, the first ones."""
    count = min(train.count, most)
    if not count:
        return {}
    note = f"{count:,} examples" if count == train.count else f"the first {count:,} of {train.count:,} examples"
    hashes = example_hashes(train, count)
    figures = {"data/duplicate_share": Figure(float(is_copy(hashes).mean()), "data", note=note)}
    if validation is not None and validation.count:
        checked = min(validation.count, most)
        seen = np.isin(example_hashes(validation, checked), hashes)
        note = f"{checked:,} validation examples beside {note}"
        figures["data/validation_overlap"] = Figure(float(seen.mean()), "data", note=note)
    return figures


def repeated_ngrams(read: ReadSequences) -> dict[str, Figure]:
    """`data/repeated_ngrams`: of the runs of 13 neighbouring targets, those that stood in another example before."""
    supervised = read.supervised
    ends = np.concatenate(([0], np.cumsum(supervised)))
    hashes = window_hashes(read.tokens, GRAM)
    if not len(hashes):
        return {}
    sequence = read.sequence_of_token
    whole = ends[GRAM:] - ends[:-GRAM] == GRAM
    whole &= sequence[: len(hashes)] == sequence[GRAM - 1 :]
    places = np.flatnonzero(whole)
    if len(places) < FEWEST:
        return {}
    _, first, group = np.unique(hashes[places], return_index=True, return_inverse=True)
    example = read.example[sequence[places]]
    repeated = example != example[first[group]]
    note = f"{len(places):,} runs of {GRAM} targets in {len(read):,} sequences"
    return {"data/repeated_ngrams": Figure(float(repeated.mean()), "data", note=note)}


def largest_answer(read: ReadSequences, answers: Answers) -> dict[str, Figure]:
    """`data/largest_answer_share`: the share of the examples whose last answer is the commonest one; and
    `data/frequent_other_answers`: of those with another answer, the share whose answer is frequent too."""
    last = answers.chosen(answers.is_last)
    last = last.chosen(read.is_main[last.sequence])
    if len(last) < FEWEST:
        return {}
    spans = zip(last.start.tolist(), last.stop.tolist(), strict=True)
    hashes = np.asarray([hash_of(read.tokens[start:stop]) for start, stop in spans], np.uint64)
    counts = np.unique(hashes, return_counts=True)[1]
    note = f"{len(last):,} answers, {len(counts):,} different ones"
    figures = {"data/largest_answer_share": Figure(float(counts.max() / len(last)), "data", note=note)}
    others = np.delete(counts, counts.argmax())
    if len(others):
        frequent = others[others >= max(2.0, FREQUENT * len(last))]
        figures["data/frequent_other_answers"] = Figure(float(frequent.sum() / others.sum()), "data", note=note)
    return figures

"""What differs between the sequences that were built and their rows, encoded again: prompts, answers, control tokens."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from fledge.data.parsing.items import Dialogue
from fledge.diagnosis.case import Figure
from fledge.doctor.data_figures.rows import RowAgain
from fledge.tokenizer import Tokenizer

FEWEST_PAIRS = 20  # of which something can be said
LOST = 0.5  # share of the rows whose prompt has a control token, in which it must be missing


def built_token_figures(rows: Sequence[RowAgain], tokenizer: Tokenizer) -> dict[str, Figure]:
    """`data/prompt_tokens_differ`, `data/answer_tokens_differ`: share of the tokens of prompts and of answers that are others
    than this code writes, of sequences of equal length; `data/text_differs`: share of sequences that hold another text;
    `data/control_tokens_split`: control tokens of prompts that were not built as one token. Only rows that were built whole are
    looked at."""
    pairs = list(_sequences(rows))
    if not pairs:
        return {}
    counts, differing, other_texts = np.zeros(2), np.zeros(2), 0
    written: Counter[int] = Counter()
    lost: Counter[int] = Counter()
    control = {number for number, token in tokenizer.core.get_added_tokens_decoder().items() if token.special}
    for fresh, weights, built in pairs:
        begin = int(np.argmax(weights > 0)) if (weights > 0).any() else len(fresh)
        if len(fresh) == len(built):
            other = fresh != built
            counts += begin, len(fresh) - begin
            differing += other[:begin].sum(), other[begin:].sum()
        is_equal = np.array_equal(fresh, built)
        other_texts += not is_equal and tokenizer.decode(fresh.tolist()) != tokenizer.decode(built.tolist())
        own = control.intersection(fresh[:begin].tolist())
        written.update(own)
        lost.update(own.difference(built.tolist()))
    names = sorted(tokenizer.core.id_to_token(one) or str(one) for one, times in lost.items() if times >= LOST * written[one])
    note = f"{len(pairs)} sequences encoded again"
    figures = {
        "data/control_tokens_split": Figure(names, "data", note=note),
        "data/text_differs": Figure(other_texts / len(pairs), "data", note=note),
    }
    for place, name in enumerate(("prompt", "answer")):
        if counts[place]:
            figures[f"data/{name}_tokens_differ"] = Figure(float(differing[place] / counts[place]), "data", note=note)
    return figures


def longer_texts(rows: Sequence[RowAgain]) -> dict[str, Figure]:
    """`data/chosen_longer_text`: share of the pairs of answers whose chosen answer is the longer text, of those that differ in
    length; none for rows without pairs."""
    pairs = [item.endings[:2] for row in rows if isinstance(item := row.item, Dialogue) and len(item.endings) >= 2]
    sizes = [(len(chosen.content), len(rejected.content)) for chosen, rejected in pairs]
    longer = [chosen > rejected for chosen, rejected in sizes if chosen != rejected]
    if len(longer) < FEWEST_PAIRS:
        return {}
    return {"data/chosen_longer_text": Figure(float(np.mean(longer)), "data", note=f"{len(longer)} pairs read again")}


def _sequences(rows: Sequence[RowAgain]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(tokens of this code, their weights, built tokens) of the sequences of rows that were built whole."""
    for row in rows:
        fresh = [sequence for example in row.encoded.examples for sequence in example]
        if row.is_whole and len(fresh) == len(row.built):
            for (tokens, weights), (built, _) in zip(fresh, row.built, strict=True):
                yield np.asarray(tokens), np.asarray(weights), np.asarray(built)

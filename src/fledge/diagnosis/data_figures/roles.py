"""What carries loss weight: prompts or answers, where answers begin, and the tokens that end them."""

from dataclasses import dataclass

import numpy as np

from fledge.data.formats import FORMATS, DataStage
from fledge.data.parsing.items import Conversation
from fledge.diagnosis.case import Figure
from fledge.diagnosis.data_figures.conversation_shape import Answers, ConversationShape
from fledge.diagnosis.data_figures.reading import ReadSequences


@dataclass(frozen=True)
class AnswerRules:
    """What a stage trains of a conversation. `only_last`: the last answer alone. `most_tokens`: of a sequence, which is cut
    there. `most_answer_tokens`: the same of an answer; None: no own limit. `others_may_be_cut`: in the sequences of an example
    but the first, an answer that was cut elsewhere may stand."""

    only_last: bool
    most_tokens: int
    most_answer_tokens: int | None = None
    others_may_be_cut: bool = False

    @classmethod
    def of(cls, stage: DataStage) -> "AnswerRules":
        """The rules of a stage: formats of pairs, labelled answers and questions train the last answer."""
        data, example_format = stage.data, FORMATS[stage.kind]
        only_last = Conversation not in example_format.item_types or data.train_on_turns == "last"
        return cls(only_last, data.max_seq_len + 1, data.max_completion_length, example_format.has_labels)


def trained_answers(read: ReadSequences, shape: ConversationShape, rules: AnswerRules) -> Answers:
    """The answers that a stage is meant to train, in the sequences that it reads."""
    answers = shape.answers(read.tokens, read.offsets)
    return answers.chosen(answers.is_last) if rules.only_last else answers


def role_figures(read: ReadSequences, shape: ConversationShape, rules: AnswerRules) -> dict[str, Figure]:
    """The figures of what is supervised by role; none where the chat template does not show where answers begin.

    Answers without any weight beside others of their conversation that have some are left out and counted in
    `data/answers_without_weight`: a row may give its turns weights. Answers that the context cuts have no end and do not count
    for ends.
    """
    if not read.is_placed or not len(read):
        return {}
    answers = trained_answers(read, shape, rules)
    if not len(answers):
        return {}
    supervised = read.supervised
    before = np.concatenate(([0], np.cumsum(supervised)))
    weighted = before[answers.stop] - before[answers.start]
    of_sequence = np.bincount(answers.sequence, weights=weighted, minlength=len(read))
    skipped = (weighted == 0) & (of_sequence[answers.sequence] > 0)
    meant = answers.chosen(~skipped)
    note = f"{len(meant):,} answers in {len(read):,} sequences"
    sizes = meant.stop - meant.start
    cut = _is_cut(meant, read, rules)
    begins = meant.start[meant.start > read.offsets[meant.sequence]]
    figures = {
        "data/answers_without_weight": float(skipped.mean()),
        "data/answer_supervised_share": float(weighted[~skipped].sum() / max(1, sizes.sum())),
        "data/answer_tokens": float(sizes.mean()) if len(sizes) else None,
        "data/first_answer_token_supervised": float(supervised[meant.start].mean()),
        "data/last_prompt_token_supervised": float(supervised[begins - 1].mean()) if len(begins) else None,
        "data/prompt_supervised_share": _prompt_share(read, answers, shape),
        "data/ends_present": float(meant.ended[~cut].mean()) if (~cut).any() else None,
        "data/ends_supervised": float(supervised[meant.stop[meant.ended] - 1].mean()) if meant.ended.any() else None,
    }
    cut_note = f"{note}, {int(cut.sum()):,} of them cut" if cut.any() else note
    return {
        name: Figure(value, "data", note=cut_note if "ends" in name else note)
        for name, value in figures.items()
        if value is not None
    }


def _is_cut(answers: Answers, read: ReadSequences, rules: AnswerRules) -> np.ndarray:
    """Whether each answer is cut at its limit, bool [A]: it does not end, and goes to the end of a sequence that is as long as
    it may be."""
    at_end = ~answers.ended & (answers.stop == read.offsets[answers.sequence + 1])
    is_full = np.diff(read.offsets)[answers.sequence] >= rules.most_tokens
    if rules.others_may_be_cut:
        is_full |= ~read.is_main[answers.sequence]
    if rules.most_answer_tokens is not None:
        is_full |= answers.stop - answers.start >= rules.most_answer_tokens
    return at_end & is_full


def _prompt_share(read: ReadSequences, answers: Answers, shape: ConversationShape) -> float | None:
    """The share of the tokens outside trained answers that carry weight. Neither count the first token of a sequence, the one
    behind the end of an answer, such as a line break that some templates train, and answers without a header of their own."""
    outside = ~answers.mask(len(read.tokens)) & ~read.is_first
    behind = answers.stop[answers.ended & (answers.stop < read.offsets[answers.sequence + 1])]
    outside[behind[~np.isin(read.tokens[behind], list(shape.breaks))]] = False
    supervised = read.supervised
    outside &= ~_headless(supervised & outside, read, answers, shape)
    return float(supervised[outside].mean()) if outside.any() else None


def _headless(trained: np.ndarray, read: ReadSequences, answers: Answers, shape: ConversationShape) -> np.ndarray:
    """Which trained tokens outside the answers found by their headers are answers that a template writes without one, directly
    behind the result of a tool, bool [N]: runs up to a token that ends an answer, which do not begin behind the header of a
    question, and after which no answer begins at once."""
    found = np.zeros(len(trained), bool)
    edges = np.flatnonzero(np.diff(np.concatenate(([0], trained.astype(np.int8), [0]))))
    starts, size = set(answers.start.tolist()), len(shape.question)
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        ends = int(read.tokens[stop - 1]) in shape.ends
        asked = size > 0 and tuple(read.tokens[max(0, start - size) : start].tolist()) == shape.question
        at_begin = start - 1 == read.offsets[np.searchsorted(read.offsets, start, side="right") - 1]
        found[start:stop] = ends and not asked and not at_begin and stop not in starts
    return found

"""Checks of pairs of answers: whether something simpler than their quality tells the chosen from the rejected one."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fledge.data.analysis.check_context import CheckContext, TrainingSource, count_of_rows, first_event, source_finding
from fledge.data.encoding.examples import prompt_length
from fledge.findings import Finding

PAIR = ("chosen", "rejected")  # names of the sequences of a format of pairs
MOST_PAIRS = 20_000  # of a source, spread evenly, are looked at
TELLING = 0.75  # accuracy of a rule above which it tells the answers apart
EQUAL = 0.01  # share of a source's rows that are dropped because their answers are equal
NEARLY, NEARLY_SHARE = 0.9, 0.2  # share of tokens that two answers have in common; share of the pairs
FEWEST = 40  # pairs of which something can be said


@dataclass(frozen=True)
class Answers:
    """The two answers to one prompt as tokens."""

    prompt: bytes
    chosen: np.ndarray
    rejected: np.ndarray

    @property
    def shared(self) -> float:
        """The share of the longer answer that both have in common, at their beginnings and ends."""
        shorter, longer = sorted((self.chosen, self.rejected), key=len)
        same = shorter == longer[: len(shorter)]
        begin = len(shorter) if same.all() else int(np.argmin(same))
        rest = len(shorter) - begin
        backwards = shorter[::-1][:rest] == longer[::-1][:rest]
        end = rest if backwards.all() else int(np.argmin(backwards))
        return (begin + end) / max(1, len(longer))


def pairs_of(stage: CheckContext, source: TrainingSource) -> dict[int, Answers]:
    """The pairs of a source by the number of their example, at most MOST_PAIRS of them; none for other formats."""
    if stage.format.sequence_names != PAIR:
        return {}
    numbers = source.sequences.examples
    stored, pairs = stage.dataset.train.examples, {}
    for number in numbers[:: max(1, -(-len(numbers) // MOST_PAIRS))].tolist():
        (tokens, weights), (others, other_weights) = stored.sequence(2 * number), stored.sequence(2 * number + 1)
        prompt = np.asarray(tokens[: prompt_length(weights)], np.int64).tobytes()
        pairs[number] = Answers(prompt, np.asarray(tokens[weights > 0]), np.asarray(others[other_weights > 0]))
    return pairs


def length_baseline(stage: CheckContext) -> Iterator[Finding]:
    """How often the longer answer is the chosen one, and a warning where the length alone tells."""
    for source in stage.training_sources:
        differences = np.asarray([len(pair.chosen) - len(pair.rejected) for pair in pairs_of(stage, source).values()])
        unequal = int(np.count_nonzero(differences))
        longer = int((differences > 0).sum())
        if unequal < FEWEST:
            continue
        right = max(longer, unequal - longer)
        is_telling = right > TELLING * unequal
        rule = "longer" if 2 * longer >= unequal else "shorter"
        says = f"the {rule} answer is the chosen one in {right / unequal:.1%} of {unequal:,} pairs of unequal length"
        yield _baseline(
            source,
            "pair lengths",
            f"{says}: a model can learn the length instead" if is_telling else says,
            is_telling,
            hint="add pairs of the opposite kind, or average over tokens: loss_type sigmoid_norm, ipo or simpo; watch "
            "rewards/accuracies_shorter",
            accuracy=right / unequal,
            pairs=unequal,
        )


def first_token_baseline(stage: CheckContext) -> Iterator[Finding]:
    """How often the first tokens of the answers tell which one is chosen, and a warning where they do.

    The rule: the answer whose first token was chosen more often than rejected in the other half of the pairs; ties are half
    right."""
    for source in stage.training_sources:
        pairs = list(pairs_of(stage, source).values())
        if len(pairs) < FEWEST:
            continue
        halves = pairs[::2], pairs[1::2]
        right = sum(_right_by_first_token(known, asked) for known, asked in (halves, halves[::-1]))
        yield _baseline(
            source,
            "first tokens",
            f"the first token alone tells the chosen answer in {right / len(pairs):.1%} of {len(pairs):,} pairs",
            right > TELLING * len(pairs),
            hint="look at how the answers begin (`fledge data stats`): a habit such as a greeting may be on one side only",
            accuracy=right / len(pairs),
            pairs=len(pairs),
        )


def _right_by_first_token(known: list[Answers], asked: list[Answers]) -> float:
    chosen, rejected = Counter(int(pair.chosen[0]) for pair in known), Counter(int(pair.rejected[0]) for pair in known)

    def score(answer: np.ndarray) -> float:
        token = int(answer[0])
        return (chosen[token] + 1) / (rejected[token] + 1)

    compared = [score(pair.chosen) - score(pair.rejected) for pair in asked]
    return sum(1.0 if difference > 0 else 0.5 if difference == 0 else 0.0 for difference in compared)


def contradictory_pairs(stage: CheckContext) -> Iterator[Finding]:
    """Two answers to one prompt are each preferred to the other: in one of the rows they are swapped."""
    for source in stage.training_sources:
        seen: set[tuple[bytes, bytes, bytes]] = set()
        swapped = []
        for number, pair in pairs_of(stage, source).items():
            chosen, rejected = pair.chosen.tobytes(), pair.rejected.tobytes()
            if (pair.prompt, rejected, chosen) in seen:
                swapped.append(number)
            seen.add((pair.prompt, chosen, rejected))
        if swapped:
            yield source_finding(
                check="contradictory pairs",
                severity="warning",
                message=f"{len(swapped):,} pairs say the opposite of another one: the same answers to the same prompt, swapped",
                source=source.name,
                where=stage.example_location(swapped[0]),
                hint="find out which of them are swapped, and leave the others out",
            )


def equal_pairs(stage: CheckContext) -> Iterator[Finding]:
    """Many rows are dropped because their answers are equal, or many answers are nearly so."""
    for source in stage.training_sources:
        for reason in ("chosen equals rejected", "answers equal after the cut"):
            count = source.report.dropped[reason]
            if count > EQUAL * source.report.rows:
                yield source_finding(
                    check="equal pairs",
                    severity="warning",
                    message=f"{count_of_rows(count, source.report.rows)} are dropped: {reason}",
                    source=source.name,
                    where=first_event(source.report, reason)[0],
                    hint="lengthen data.max_seq_len" if "cut" in reason else "they teach nothing: find where they come from",
                    patch=stage.longer_rows() if "cut" in reason else None,
                )
        pairs = pairs_of(stage, source)
        near = [number for number, pair in pairs.items() if pair.shared > NEARLY]
        if len(pairs) >= FEWEST and len(near) > NEARLY_SHARE * len(pairs):
            yield source_finding(
                check="equal pairs",
                severity="warning",
                message=f"in {len(near):,} of {len(pairs):,} pairs the answers share more than {NEARLY:.0%} of their tokens: "
                "pushing one down pushes the other one down, too",
                source=source.name,
                where=stage.example_location(near[0]),
                hint="set sft_loss_weight to keep the chosen answers likely, and watch drift/chosen",
            )


def _baseline(source: TrainingSource, check: str, message: str, is_telling: bool, *, hint: str, **figures: float) -> Finding:
    return Finding(
        check=check,
        severity="warning" if is_telling else "info",
        message=message,
        hint=hint if is_telling else "",
        evidence={"source": source.name, **figures},
    )

"""Answers to the same prompts set side by side, one column per moment of training."""

from collections.abc import Sequence
from dataclasses import dataclass

from fledge.report.records import Evaluation, Sample, Stage


@dataclass(frozen=True)
class Moment:
    """`start` marks the model before any training at all."""

    stage: str
    when: str
    start: bool = False


@dataclass(frozen=True)
class SampleTable:
    moments: tuple[Moment, ...]
    rows: tuple[tuple[str, tuple[Sample | None, ...]], ...]


def sample_tables(stages: Sequence[Stage]) -> list[SampleTable]:
    """One table per group of prompts that were asked at the same moments, in order of first appearance."""
    answers = distinct_answers(stages)
    prompts = list(dict.fromkeys(prompt for _, given in answers for prompt in given))
    groups: dict[tuple[int, ...], list[str]] = {}
    for prompt in prompts:
        places = tuple(place for place, (_, given) in enumerate(answers) if prompt in given)
        groups.setdefault(places, []).append(prompt)
    return [
        SampleTable(
            tuple(answers[place][0] for place in places),
            tuple((prompt, tuple(answers[place][1].get(prompt) for place in places)) for prompt in members),
        )
        for places, members in groups.items()
    ]


def distinct_answers(stages: Sequence[Stage]) -> list[tuple[Moment, dict[str, Sample]]]:
    """Answers at every moment, leaving out a `before` that only repeats the stage before it."""
    found: list[tuple[Moment, dict[str, Sample]]] = []
    for stage in stages:
        before, after = by_prompt(stage.before), by_prompt(stage.after)
        earlier = found[-1][1] if found else {}
        if before and not all(prompt in earlier and earlier[prompt] == sample for prompt, sample in before.items()):
            found.append((Moment(stage.name, "before", start=not found and stage is stages[0]), before))
        if after:
            found.append((Moment(stage.name, "after"), after))
    return found


def by_prompt(evaluation: Evaluation | None) -> dict[str, Sample]:
    given: dict[str, Sample] = {}
    for sample in evaluation.samples if evaluation else ():
        given.setdefault(sample.prompt, sample)
    return given

"""Sampled answers as tables: one row per prompt, one column per moment of training."""

from collections.abc import Sequence
from dataclasses import dataclass

from fledge.report.records import Evaluation, Sample, Stage


@dataclass(frozen=True)
class Moment:
    """Before or after a stage (`when`). `start` marks the model before any training."""

    stage: str
    when: str
    start: bool = False


@dataclass(frozen=True)
class SampleTable:
    """Answers to prompts with a common set of moments: for each prompt, one sample per moment."""

    moments: tuple[Moment, ...]
    rows: tuple[tuple[str, tuple[Sample | None, ...]], ...]


def sample_tables(stages: Sequence[Stage]) -> list[SampleTable]:
    """One table for each set of moments, in order of first appearance. A table holds all prompts that were sampled at
    these moments."""
    answers = distinct_answers(stages)
    prompts = list(dict.fromkeys(prompt for _, samples in answers for prompt in samples))
    groups: dict[tuple[int, ...], list[str]] = {}
    for prompt in prompts:
        columns = tuple(column for column, (_, samples) in enumerate(answers) if prompt in samples)
        groups.setdefault(columns, []).append(prompt)
    return [
        SampleTable(
            tuple(answers[column][0] for column in columns),
            tuple((prompt, tuple(answers[column][1].get(prompt) for column in columns)) for prompt in members),
        )
        for columns, members in groups.items()
    ]


def distinct_answers(stages: Sequence[Stage]) -> list[tuple[Moment, dict[str, Sample]]]:
    """The samples of every moment. A `before` moment that only repeats the `after` of the preceding stage is left out."""
    moments: list[tuple[Moment, dict[str, Sample]]] = []
    for stage in stages:
        before, after = by_prompt(stage.before), by_prompt(stage.after)
        earlier = moments[-1][1] if moments else {}
        if before and not all(prompt in earlier and earlier[prompt] == sample for prompt, sample in before.items()):
            moments.append((Moment(stage.name, "before", start=not moments and stage is stages[0]), before))
        if after:
            moments.append((Moment(stage.name, "after"), after))
    return moments


def by_prompt(evaluation: Evaluation | None) -> dict[str, Sample]:
    """The samples of an evaluation by prompt; the first one when a prompt was sampled twice."""
    samples: dict[str, Sample] = {}
    for sample in evaluation.samples if evaluation else ():
        samples.setdefault(sample.prompt, sample)
    return samples

"""`fledge runs compare`: what differs between runs, stages or checkpoints, in recipe, metrics and answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fledge.errors import FledgeError
from fledge.evaluate.comparison import SetComparison, compare_sets
from fledge.evaluate.records import BEFORE, SetResult
from fledge.recipe.diff import changed_leaves
from fledge.runs.read import Subject, find_subject, metrics, plan_values, planned_steps, recipe_values, sets

PLACE_KEYS = ("name", "output")  # of a recipe: where a run is, not what it does
FORGETTING = "bits_per_byte"  # the metric of texts before and after a stage


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """A stage (or step) of one subject: its place in the table, its planned steps, and metrics before and now."""

    subject: str
    stage: str
    steps: int | None
    before: dict[str, Any]
    now: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PairOfSets:
    """A set of a later subject, compared with the first one. `stage`: empty for folders of results."""

    first: str
    second: str
    stage: str
    comparison: SetComparison


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """A set of texts before and after a stage of one subject."""

    subject: str
    stage: str
    comparison: SetComparison


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that `fledge runs compare` says. `recipe`: (key, values by subject) where they differ. `missing`: sets that
    only some subjects have, with those that lack it."""

    subjects: list[Subject]
    recipe: list[tuple[str, list[Any]]] = field(default_factory=list)
    stages: list[StageRow] = field(default_factory=list)
    sets: list[PairOfSets] = field(default_factory=list)
    forgetting: list[Forgotten] = field(default_factory=list)
    missing: list[tuple[str, list[str]]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The comparison as JSON values."""
        return {
            "subjects": [one.name for one in self.subjects],
            "recipe": [{"key": key, "values": values} for key, values in self.recipe],
            "stages": [vars(row) for row in self.stages],
            "sets": [{**vars(one), "comparison": one.comparison.as_dict()} for one in self.sets],
            "forgetting": [{**vars(one), "comparison": one.comparison.as_dict()} for one in self.forgetting],
            "missing": [{"set": name, "lacking": lacking} for name, lacking in self.missing],
        }


def compare(names: Sequence[str]) -> Comparison:
    """Compare two or more runs, stages, steps of a stage, or folders of results, each with the first one. Runs are compared
    stage by stage. Raises FledgeError for a name that is none, and for fewer than two."""
    if len(names) < 2:
        raise FledgeError("a comparison needs two", where=" ".join(names), hint="fledge runs compare A B")
    subjects = [find_subject(name) for name in names]
    whole = all(subject.run is not None and subject.stage is None for subject in subjects)
    if not whole:  # a run beside a stage or a step means its last stage
        subjects = [_last_stage(subject) for subject in subjects]
    runs = [subject for subject in subjects if subject.run is not None]
    results = [dict(_results(subject, whole)) for subject in subjects]
    return Comparison(
        subjects=subjects,
        recipe=_recipe_differences(runs) if len(runs) == len(subjects) else [],
        stages=[row for subject in runs for row in _stage_rows(subject)],
        sets=_pairs(subjects, results),
        forgetting=[row for subject in runs for row in _forgetting(subject)],
        missing=_missing(subjects, results),
    )


def _last_stage(subject: Subject) -> Subject:
    if subject.run is None or subject.stage is not None:
        return subject
    stage = subject.stages[-1]
    return Subject(name=subject.name, folder=subject.directory(stage).root, run=subject.run, stage=stage)


def _recipe_differences(subjects: Sequence[Subject]) -> list[tuple[str, list[Any]]]:
    """The keys of the recipes that differ, with the value of each subject. A stage that a recipe does not have is one key."""
    recipes = [_comparable(subject) for subject in subjects]
    shared = set.intersection(*(set(recipe["stages"]) for recipe in recipes))
    for recipe in recipes:
        recipe["stages"] = {name: stage if name in shared else "there" for name, stage in recipe["stages"].items()}
    keys: dict[str, list[Any]] = {}
    for number, recipe in enumerate(recipes[1:], 1):
        for key, before, after in changed_leaves(recipes[0], recipe):
            keys.setdefault(key, [before] * len(recipes))[number] = after
    return list(keys.items())


def _comparable(subject: Subject) -> dict[str, Any]:
    """The recipe of a subject as plain values with all defaults: without its place, of a stage only that stage. Lists are
    mappings by number, so that their items are compared one by one."""
    assert subject.run is not None
    values = {key: value for key, value in recipe_values(subject.run).items() if key not in PLACE_KEYS}
    if subject.stage is not None:
        values["stages"] = {"(stage)": values["stages"].get(subject.stage, {})}
    return _numbered(values)


def _numbered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbered(item) for key, item in value.items()}
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return {str(number): _numbered(item) for number, item in enumerate(value)}
    return value


def _stage_rows(subject: Subject) -> Iterator[StageRow]:
    for stage in subject.stages:
        directory = subject.directory(stage)
        yield StageRow(
            subject=subject.name,
            stage=stage if subject.step is None else f"{stage}@step-{subject.step}",
            steps=planned_steps(plan_values(directory)) if subject.step is None else subject.step,
            before=directory.metrics(BEFORE),
            now=metrics(subject, stage),
        )


Key = tuple[str, str]  # stage (empty where subjects are single stages or folders), set


def _results(subject: Subject, whole: bool) -> Iterator[tuple[Key, SetResult]]:
    if subject.run is None:
        yield from ((("", name), result) for name, result in sets(subject, None).items())
        return
    for stage in subject.stages:
        yield from (((stage if whole else "", name), result) for name, result in sets(subject, stage).items())


def _pairs(subjects: Sequence[Subject], results: Sequence[dict[Key, SetResult]]) -> list[PairOfSets]:
    return [
        PairOfSets(first=subjects[0].name, second=subject.name, stage=key[0], comparison=compare_sets(results[0][key], result))
        for subject, found in zip(subjects[1:], results[1:], strict=True)
        for key, result in found.items()
        if key in results[0]
    ]


def _missing(subjects: Sequence[Subject], results: Sequence[dict[Key, SetResult]]) -> list[tuple[str, list[str]]]:
    keys = dict.fromkeys(key for found in results for key in found)
    lacking = {
        "/".join(filter(None, key)): [one.name for one, found in zip(subjects, results, strict=True) if key not in found]
        for key in keys
    }
    return [(key, names) for key, names in lacking.items() if names]


def _forgetting(subject: Subject) -> Iterator[Forgotten]:
    """Sets of texts of a subject, before the stage and now."""
    for stage in subject.stages:
        before, now = sets(subject, stage, BEFORE), sets(subject, stage)
        for name, result in now.items():
            if result.kind == "text" and name in before:
                comparison = compare_sets(before[name], result, metrics=(FORGETTING,))
                yield Forgotten(subject=subject.name, stage=stage, comparison=comparison)

"""`fledge rate report`: what raters say of each model, how two models differ, and how far raters agree."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np
from rich.text import Text

from fledge.errors import FledgeError
from fledge.escaping import escaped_json
from fledge.evaluate.intervals import Interval, percentiles, resampled_sums
from fledge.evaluate.statistics import paired_test
from fledge.prefer.agreement import FEW_PAIRS, FEW_PROMPTS, plain_table
from fledge.prefer.evaluated import read_rated
from fledge.prefer.quality import DIMENSIONS, HIGHEST, LOWEST, Item, QualityFile, all_items, read_quality
from fledge.run.terminal import output_terminal

LEVELS = HIGHEST - LOWEST + 1


@dataclass(frozen=True, kw_only=True)
class Mean:
    """The mean score of a model in a dimension, with its 95 % interval over prompts, and the number of ratings."""

    model: str
    dimension: str
    mean: float
    interval: Interval
    ratings: int


@dataclass(frozen=True, kw_only=True)
class ModelDifference:
    """By how much the second model is rated higher than the first on the prompts that both answered."""

    first: str
    second: str
    dimension: str
    difference: float
    interval: Interval
    p_value: float
    prompts: int


@dataclass(frozen=True, kw_only=True)
class QualityAgreement:
    """The agreement of two raters in a dimension. `kappa`: Cohen's κ with quadratic weights; None where it is not defined.
    `interval`: 95 %, None where there are too few ratings. `equal`: the share of equal scores."""

    one: str
    other: str
    dimension: str
    ratings: int
    equal: float
    kappa: float | None
    interval: Interval | None


def weighted_kappa(tables: np.ndarray) -> np.ndarray:
    """Cohen's κ with quadratic weights [...] (Cohen 1968) of tables [..., k, k] that count the scores of two raters:
    1 − Σ w·observed / Σ w·expected with w = (i − j)². NaN where both give one and the same score alone."""
    levels = np.arange(tables.shape[-1])
    weights = (levels[:, None] - levels[None, :]) ** 2
    total = tables.sum(axis=(-2, -1))
    expected = tables.sum(axis=-1)[..., :, None] * tables.sum(axis=-2)[..., None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - (weights * tables).sum(axis=(-2, -1)) * total / (weights * expected).sum(axis=(-2, -1))


def agree(one: QualityFile, other: QualityFile, items: dict[str, Item]) -> list[QualityAgreement]:
    """The agreement of two raters on the answers that both rated. Intervals are percentiles of 1,000 resamplings of prompts,
    since answers to one prompt are rated alike."""
    common = [item for item in one.scores if item in other.scores]
    found = []
    for place, dimension in enumerate(DIMENSIONS):
        by_prompt: dict[str, np.ndarray] = defaultdict(lambda: np.zeros((LEVELS, LEVELS)))
        for item in common:
            by_prompt[items[item].asked.id][one.scores[item][place] - LOWEST, other.scores[item][place] - LOWEST] += 1
        tables = np.array([by_prompt[prompt] for prompt in sorted(by_prompt)]).reshape(-1, LEVELS, LEVELS)
        total = tables.sum(axis=0)
        value = float(weighted_kappa(total)) if common else float("nan")
        enough = len(common) >= FEW_PAIRS and len(tables) >= FEW_PROMPTS
        found.append(
            QualityAgreement(
                one=one.rater,
                other=other.rater,
                dimension=dimension,
                ratings=len(common),
                equal=float(np.trace(total) / len(common)) if common else 0.0,
                kappa=None if np.isnan(value) else value,
                interval=_kappa_interval(tables) if enough and not np.isnan(value) else None,
            )
        )
    return found


def _kappa_interval(tables: np.ndarray) -> Interval | None:
    draws = weighted_kappa(resampled_sums(tables.reshape(len(tables), -1)).reshape(-1, LEVELS, LEVELS))
    draws = draws[~np.isnan(draws)]
    if not len(draws) or np.ptp(draws) == 0:  # complete agreement: resamplings tell nothing
        return None
    return percentiles(draws)


def means_and_differences(files: Sequence[QualityFile], items: dict[str, Item]) -> tuple[list[Mean], list[ModelDifference]]:
    """The mean scores of each model, and the differences of each two. The scores of all raters for a prompt are averaged first:
    prompts are what a model would be asked anew."""
    scores: dict[str, dict[str, list[tuple[int, ...]]]] = defaultdict(lambda: defaultdict(list))
    for file in files:
        for item, given in file.scores.items():
            for model in dict.fromkeys(draw.model for draw in items[item].answer.draws):
                scores[model][items[item].asked.id].append(given)
    models = dict.fromkeys(draw.model for item in items.values() for draw in item.answer.draws)  # in the order of the answers
    averaged = {
        model: {prompt: np.mean(np.array(given, float), axis=0) for prompt, given in scores[model].items()}
        for model in models
        if model in scores
    }
    means = [
        Mean(
            model=model,
            dimension=dimension,
            mean=float(values[:, place].mean()),
            interval=_mean_interval(values[:, place]),
            ratings=sum(map(len, scores[model].values())),
        )
        for model, prompts in averaged.items()
        for values in [np.array(list(prompts.values()))]
        for place, dimension in enumerate(DIMENSIONS)
    ]
    return means, [one for pair in combinations(averaged, 2) for one in _differences(pair, averaged)]


def _differences(pair: tuple[str, str], averaged: dict[str, dict[str, np.ndarray]]) -> list[ModelDifference]:
    first, second = (averaged[model] for model in pair)
    common = [prompt for prompt in first if prompt in second]
    if len(common) < 2:
        return []
    before, after = (np.array([scores[prompt] for prompt in common]) for scores in (first, second))
    tests = [paired_test(before[:, place], after[:, place]) for place in range(len(DIMENSIONS))]
    return [
        ModelDifference(
            first=pair[0],
            second=pair[1],
            dimension=dimension,
            difference=test.difference,
            interval=test.interval,
            p_value=test.p_value,
            prompts=len(common),
        )
        for dimension, test in zip(DIMENSIONS, tests, strict=True)
    ]


def _mean_interval(values: np.ndarray) -> Interval:
    """The 95 % interval of a mean over prompts [n], by resampling; the whole scale for a single prompt."""
    if len(values) < 2:
        return float(LOWEST), float(HIGHEST)
    return percentiles(resampled_sums(values[:, None])[:, 0] / len(values))


def report(ratings: Sequence[str], answers: Sequence[str], as_json: bool = False) -> None:
    """Print means by model, differences of models, and agreement of raters. Raises FledgeError for ratings of answers that are
    in none of the files, and for two files of one rater."""
    files = [read_quality(path) for path in ratings]
    items = {item.id: item for item in all_items(read_rated(answers))}
    for number, file in enumerate(files):
        if file.rater in [earlier.rater for earlier in files[:number]]:
            raise FledgeError(f"two files have the same rater, '{file.rater}'", where=str(file.path), hint="rename one")
        if unknown := [item for item in file.scores if item not in items]:
            raise FledgeError(
                f"{len(unknown):,} rated answers are in none of the files of answers, such as item {unknown[0][:40]}",
                where=str(file.path),
                hint="name all files that were rated with --answers",
            )
    means, differences = means_and_differences(files, items)
    agreement = [one for pair in combinations(files, 2) for one in agree(*pair, items)]
    if as_json:
        raters = [{"rater": file.rater, "rated": len(file.scores), "unrated": file.unrated} for file in files]
        values = {"raters": raters, "means": means, "differences": differences, "agreement": agreement}
        plain = {name: [one if isinstance(one, dict) else asdict(one) for one in found] for name, found in values.items()}
        print(escaped_json(json.dumps(plain, ensure_ascii=False, indent=1)))
        return
    _print(files, means, differences, agreement)


def _print(
    files: Sequence[QualityFile],
    means: Sequence[Mean],
    differences: Sequence[ModelDifference],
    agreement: Sequence[QualityAgreement],
) -> None:
    terminal = output_terminal()
    raters = plain_table("rater", "answers rated", "not rated")
    for file in files:
        raters.add_row(Text(file.rater), f"{len(file.scores):,}", f"{file.unrated:,}")
    models = plain_table("model", "ratings", *DIMENSIONS)
    for model in dict.fromkeys(one.model for one in means):
        own = [one for one in means if one.model == model]
        models.add_row(Text(model), f"{own[0].ratings:,}", *(_with_interval(one.mean, one.interval) for one in own))
    changes = plain_table("difference", "prompts", *DIMENSIONS)
    for pair in dict.fromkeys((one.first, one.second) for one in differences):
        own = [one for one in differences if (one.first, one.second) == pair]
        cells = (f"{_with_interval(one.difference, one.interval, '+')}, p = {one.p_value:.2g}" for one in own)
        changes.add_row(Text(f"{pair[0]} → {pair[1]}"), f"{own[0].prompts:,}", *cells)
    agreed = plain_table("raters", "answers of both", "dimension", "equal scores", "weighted κ")
    for one in agreement:
        few = f"too few: {FEW_PAIRS} answers to {FEW_PROMPTS} prompts are needed for an interval"
        kappa = "not defined" if one.kappa is None else f"{one.kappa:.2f}"
        kappa += "" if one.kappa is None else f" [{one.interval[0]:.2f}, {one.interval[1]:.2f}]" if one.interval else ""
        agreed.add_row(
            Text(f"{one.one} – {one.other}"), f"{one.ratings:,}", one.dimension, f"{one.equal:.0%}",
            f"{kappa} ({few})" if one.ratings < FEW_PAIRS else kappa,
        )  # fmt: skip
    for table in (raters, models, *([changes] if differences else []), *([agreed] if agreement else [])):
        terminal.print(table)
        terminal.print()
    terminal.print(Text("95 % intervals over prompts. κ: quadratic weights; 0 is chance, 1 complete agreement.", style="dim"))


def _with_interval(value: float, interval: Interval, sign: str = "") -> str:
    return f"{value:{sign}.2f} [{interval[0]:{sign}.2f}, {interval[1]:{sign}.2f}]"

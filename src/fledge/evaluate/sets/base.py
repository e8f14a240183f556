"""What all kinds of evaluation sets have in common: a loaded set, and how the values of its items become its metrics."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fledge.evaluate.intervals import Z95, Interval, wilson_interval
from fledge.evaluate.records import ItemResult, MetricValue, SetResult, content_hash
from fledge.evaluate.sets.model import EvaluatedModel, Progress
from fledge.generation import check_prompt
from fledge.model.protocol import LanguageModel
from fledge.recipe.sections.evaluation_sets import EvaluationSetConfig
from fledge.tokenizer import Tokenizer

ITEMS_AT_ONCE, CHARACTERS_AT_ONCE = 256, 2_000_000  # whose tokens and scores are in memory
SHOWN_CHARACTERS = 500  # of a long text, in the results of its item


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a set has measured: the items, in their order, and sentences on how."""

    items: Sequence[ItemResult]
    notes: Sequence[str] = ()


class EvaluationSet(ABC):
    """A set whose items are read. `count`: items. `notes`: sentences on what was left out when it was read. `fingerprint`: of
    the items and of the settings that change a result."""

    def __init__(self, name: str, config: EvaluationSetConfig, ids: Sequence[str], notes: Sequence[str] = ()) -> None:
        self.name, self.config, self.ids, self.notes = name, config, tuple(ids), tuple(notes)
        settings = config.model_dump(mode="json", exclude={"path", "few_shot_path", "every_steps", "max_samples"})
        self.fingerprint = content_hash(settings, self.ids)

    @property
    def kind(self) -> str:
        """The kind of set."""
        return self.config.kind

    def prompts(self, tokenizer: Tokenizer) -> list[list[int]]:
        """The tokens that each answer starts from; none in a set that generates none."""
        return []

    @property
    def places(self) -> list[str]:
        """What an error calls each item that is answered."""
        return []

    def check(self, tokenizer: Tokenizer, max_positions: int) -> None:
        """Raise FledgeError for a prompt that leaves no room for an answer, or that the chat template cannot render."""
        for prompt, where in zip(self.prompts(tokenizer), self.places, strict=True):
            check_prompt(prompt, max_positions, where)

    @property
    def count(self) -> int:
        """The number of items."""
        return len(self.ids)

    @abstractmethod
    def measure(self, model: EvaluatedModel, progress: Progress) -> Measured:
        """Ask the model all items."""

    @abstractmethod
    def summarize(self, items: Sequence[ItemResult]) -> dict[str, MetricValue]:
        """The metrics of some of the items, at least one."""

    def evaluate(self, model: LanguageModel, tokenizer: Tokenizer, progress: Progress = lambda count: None) -> SetResult:
        """The result of a model on the set."""
        return self.evaluate_model(EvaluatedModel(model, tokenizer), progress)

    def evaluate_model(self, model: EvaluatedModel, progress: Progress = lambda count: None) -> SetResult:
        """As `evaluate`, for a model whose engine several sets share."""
        started = time.monotonic()
        measured = self.measure(model, progress)
        return SetResult(
            name=self.name,
            kind=self.kind,
            fingerprint=self.fingerprint,
            metrics=self.summarize(measured.items),
            groups={name: self.summarize(items) for name, items in by_group(measured.items).items()},
            items=tuple(measured.items),
            seconds=round(time.monotonic() - started, 3),
            notes=(*self.notes, *measured.notes),
        )


def by_group(items: Sequence[ItemResult]) -> dict[str, list[ItemResult]]:
    """The items of each group, by its name; nothing where all items are in one group."""
    groups: dict[str, list[ItemResult]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    return dict(sorted(groups.items())) if len(groups) > 1 else {}


def shortened(text: str) -> str:
    """The beginning of a long text."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def slices(sequence: Sequence[Any], characters: Callable[[Any], int]) -> Iterator[Sequence[Any]]:
    """The sequence in parts of at most 256 items and 2 million characters, but at least one item."""
    start, total = 0, 0
    for place, item in enumerate(sequence):
        size = characters(item)
        if place > start and (place - start == ITEMS_AT_ONCE or total + size > CHARACTERS_AT_ONCE):
            yield sequence[start:place]
            start, total = place, 0
        total += size
    if start < len(sequence):
        yield sequence[start:]


# -- from items to metrics -------------------------------------------------------------------------------------------------


def rate(items: Sequence[ItemResult], name: str) -> MetricValue:
    """The mean of a metric that is 0 or 1 in each item that has it, with Wilson's interval; higher is better. Not a number,
    without an interval, where no item has it."""
    values = [item.values[name] for item in items if name in item.values]
    return MetricValue(
        value=sum(values) / len(values) if values else math.nan,
        interval=wilson_interval(sum(values), len(values)) if values else None,
        count=len(values),
        higher_is_better=True,
    )


def ratio(
    items: Sequence[ItemResult],
    total: Callable[[Mapping[str, float]], float],
    count: Callable[[Mapping[str, float]], float],
    transform: Callable[[float], float] = lambda value: value,
    higher_is_better: bool = False,
) -> MetricValue:
    """Σ total ÷ Σ count over the items, of totals that cannot be below 0 such as a loss for each token, made to another unit by
    a rising `transform`. The interval takes items as independent and their sums as large (linearised variance of a ratio,
    Cochran 1977, section 2.11), and ends at 0."""
    totals, counts = [total(item.values) for item in items], [count(item.values) for item in items]
    value, interval = ratio_and_interval(totals, counts)
    return MetricValue(
        value=transform(value),
        interval=None if interval is None else (transform(max(interval[0], 0.0)), transform(interval[1])),
        count=len(items),
        higher_is_better=higher_is_better,
    )


def ratio_and_interval(totals: Sequence[float], counts: Sequence[float]) -> tuple[float, Interval | None]:
    """Σ totals ÷ Σ counts with its 95 % interval; None for fewer than two items."""
    n, whole = len(totals), sum(counts)
    value = sum(totals) / whole if whole else float("nan")
    if n < 2 or not whole:
        return value, None
    squares = sum((one - value * size) ** 2 for one, size in zip(totals, counts, strict=True))
    half_width = Z95 * (squares * n / (n - 1)) ** 0.5 / whole
    return value, (value - half_width, value + half_width)

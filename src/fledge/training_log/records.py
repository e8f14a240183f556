"""What a training run wrote about itself, in the names of fledge, whoever wrote it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
DERIVED = "derived: "  # begins the origin of a setting that follows from others


@dataclass(frozen=True)
class Series:
    """One figure over the steps of a run. `steps`, `values`: [N] each, in order of the steps; a value may be NaN or infinite,
    as it was written. A step is an update of the optimizer, where the log tells updates; else the number that the log gives."""

    steps: Floats
    values: Floats

    def __len__(self) -> int:
        return len(self.values)

    @property
    def finite(self) -> "Series":
        """The points whose value is a finite number."""
        keep = np.isfinite(self.values)
        return Series(self.steps[keep], self.values[keep])

    def between(self, first: float, last: float) -> "Series":
        """The points with `first` ≤ step ≤ `last`."""
        keep = (self.steps >= first) & (self.steps <= last)
        return Series(self.steps[keep], self.values[keep])


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What a run was told to do; None: not known.

    Counts of rows are of whole updates over all processes (`batch_rows`) or of one micro-batch of one process. `epochs`,
    `steps`: as planned for the whole stage. `warmup_steps` counts updates. `rows`: training examples.
    `vocab_size`: of the model. `initial`: `fresh` weights or a `trained` model. `method`: `full`, `lora`, `qlora`.
    `loss_type`: of preferences, such as `sigmoid`. `num_generations`: answers to one prompt. `other`: what was given and has no
    field here, by its own name. `origin`: name of a field → where its value was read.
    """

    kind: str | None = None
    initial: str | None = None
    method: str | None = None
    learning_rate: float | None = None
    min_learning_rate: float | None = None
    schedule: str | None = None
    warmup_steps: float | None = None
    steps: float | None = None
    epochs: float | None = None
    rows: float | None = None
    batch_rows: float | None = None
    batch_tokens: float | None = None
    micro_batch_rows: float | None = None
    accumulation_steps: float | None = None
    processes: float | None = None
    context: float | None = None
    vocab_size: float | None = None
    hidden_size: float | None = None
    parameters: float | None = None
    trained_parameters: float | None = None
    tokens: float | None = None
    target_tokens: float | None = None
    precision: str | None = None
    optimizer: str | None = None
    weight_decay: float | None = None
    max_grad_norm: float | None = None
    adapter_rank: float | None = None
    dropout: float | None = None
    beta: float | None = None
    loss_type: str | None = None
    num_generations: float | None = None
    seed: float | None = None
    early_stopping_patience: float | None = None
    other: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)

    def updated(self, later: "TrainingSettings") -> "TrainingSettings":
        """These settings with those that `later` knows put over them. What `later` only derives does not replace what is
        written here."""
        kept = {name for name in self.known() if later._derives(name) and not self._derives(name)}
        known = {name: value for name, value in later.known().items() if name not in kept}
        origin = {**self.origin, **{name: where for name, where in later.origin.items() if name not in kept}}
        other = {**self.other, **later.other}
        if sentences := dict.fromkeys((*self.other.get("assumed", ()), *later.other.get("assumed", ()))):
            other["assumed"] = tuple(sentences)
        return replace(self, **known, other=other, origin=origin)

    def _derives(self, name: str) -> bool:
        return self.origin.get(name, "").startswith(DERIVED)

    def known(self) -> dict[str, Any]:
        """The settings that are known, by name."""
        names = [one.name for one in fields(self) if one.name not in ("other", "origin")]
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, kw_only=True)
class TrainingLog:
    """The log of one stage of training.

    `source`: the kind of log, such as `Hugging Face trainer_state.json`. `path`: where it was read. `stage`: its name; empty
    where a log has no stages. `series`: by the names of fledge's events (`train/loss`, `train/lr`, `train/grad_norm`,
    `train/epoch`, `train/tokens`, `eval/loss`, `train/rewards/margins`, `system/step_seconds`, …); a figure without such a name
    keeps its own. `records`: lines or points that were read. `unread`: what was left out → how many lines or points. `notes`:
    what was understood, in sentences. `events`: records of other kinds (guards, alerts, stops), as they were written.
    `ended`: whether the stage's end is in the log; None: not known. `step_unit`: what a step counts: `update` of the optimizer,
    `micro-batch`, `epoch`, `record` of the log where it has no steps, or `unknown`: updates or micro-batches.
    """

    source: str
    path: str
    series: Mapping[str, Series]
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    stage: str = ""
    records: int = 0
    unread: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    events: tuple[Mapping[str, Any], ...] = ()
    ended: bool | None = None
    step_unit: str = "update"

    def get(self, name: str) -> Series | None:
        """The finite points of a figure; None where there is none."""
        series = self.series.get(name)
        found = None if series is None else series.finite
        return found if found is not None and len(found) else None

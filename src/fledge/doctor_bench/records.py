"""What is stored of each run of the bench, so that it can be judged again without training again."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fledge.diagnosis.case import Figure
from fledge.doctor_bench.case_key import CaseKey
from fledge.run.text_files import write_json

FILE = "case.json"
Figures = dict[str, Figure]


@dataclass(kw_only=True)
class CaseRecord:
    """One run and what was measured.

    `log`: the directory of the stage below the folder of the case. `figures`: by moment (`data`, `start`: probes of the weights
    before the first step, `last`: of the last checkpoint) the figures by name. `left_out`: what could not be measured → why.
    `error`: the message with which training ended, if it failed. `clean_loss`: see `Yardstick`. `logged_loss`: the validation
    loss that the run has logged last. `step_seconds`: median of an update. `memory_bytes`: growth while it trained. `seconds`:
    of training, of each examination. `failure`: an error of the bench itself. `is_examined`: whether it was, or trained for the
    effect of its fault alone.
    """

    key: str
    log: str
    figures: dict[str, Figures] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    clean_loss: float | None = None
    logged_loss: float | None = None
    step_seconds: float | None = None
    memory_bytes: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    failure: str | None = None
    is_examined: bool = True

    @property
    def case(self) -> CaseKey:
        """The key."""
        return CaseKey.parse(self.key)

    def write(self, folder: Path) -> None:
        """Write `case.json` into the folder of the case."""
        write_json(folder / FILE, {**asdict(self), "figures": {k: _plain(v) for k, v in self.figures.items()}})

    @classmethod
    def read(cls, folder: Path) -> "CaseRecord":
        """The record in the folder of a case."""
        values = json.loads((folder / FILE).read_text(encoding="utf-8"))
        figures = {moment: _figures(found) for moment, found in values.pop("figures").items()}
        return cls(figures=figures, **values)


def _plain(figures: Figures) -> dict[str, Any]:
    return {name: {**asdict(figure), "value": plain(figure.value)} for name, figure in figures.items()}


def plain(value: Any) -> Any:
    """A value as JSON has it: numbers that are not finite as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return {"number": str(value)}
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)


def restored(value: Any) -> Any:
    """The value from what `plain` gave."""
    if isinstance(value, dict):
        if set(value) == {"number"}:
            return float(value["number"])
        return {key: restored(item) for key, item in value.items()}
    return [restored(item) for item in value] if isinstance(value, list) else value


def _figures(values: Mapping[str, Any]) -> Figures:
    found: Figures = {}
    for name, one in values.items():
        steps = None if one["steps"] is None else (float(one["steps"][0]), float(one["steps"][1]))
        found[name] = Figure(restored(one["value"]), one["depth"], steps, one["note"])
    return found


def records(out: Path) -> Iterator[tuple[Path, CaseRecord]]:
    """Every record below a folder of results with the folder of its case, in the order of their names."""
    for file in sorted((out / "cases").glob(f"*/{FILE}")):
        yield file.parent, CaseRecord.read(file.parent)

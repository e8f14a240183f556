"""The journal of a sweep: its finished trials, in Optuna's journal storage, one JSON object a line.

A trial is written as a whole when it has ended. `optuna-dashboard` can read the file.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fledge.errors import FledgeError, first_line
from fledge.recipe.diff import changed_leaves
from fledge.run.text_files import read_json
from fledge.sweep.proposals import Outcome, Search, State, frozen_trial, import_optuna
from fledge.sweep.space import Parameter

STUDY = "fledge"
RECORD = "fledge"  # the attribute of a trial that holds what Optuna has no place for


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """A finished trial.

    `value`: the mean of `seed_values` of a complete trial, the value at its last look of a pruned one, None of a failed one.
    `seed_values`: the metric of each seed that was trained to its end. `looks`: the validation loss at each look, by number.
    `reason`: why it was pruned or failed. `seconds`: how long its runs took, the time before an interruption included.
    """

    number: int
    values: dict[str, Any]
    state: State
    value: float | None
    seed_values: tuple[float, ...] = ()
    looks: dict[int, float] = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0

    def outcome(self) -> Outcome:
        """The trial as proposals need it."""
        return Outcome(values=self.values, state=self.state, value=self.value, looks=self.looks)


class Journal:
    """Reads and appends finished trials, in the order of their numbers."""

    def __init__(self, file: Path, search: Search) -> None:
        """Raises FledgeError for a file that is no journal. What a killed process was about to write is removed: the caller
        holds the lock of the sweep."""
        optuna = import_optuna("a sweep")
        self.file, self.search = file, search
        _mend(file)
        from optuna.storages.journal import JournalFileBackend

        try:
            storage = optuna.storages.JournalStorage(JournalFileBackend(str(file)))
            self.study = optuna.create_study(
                study_name=STUDY,
                storage=storage,
                direction="maximize" if search.higher_is_better else "minimize",
                load_if_exists=True,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise FledgeError(f"damaged: {first_line(error)}", where=str(file),
                              hint="choose another --out, or put the file back as it was") from None  # fmt: skip
        except OSError as error:
            raise FledgeError(f"cannot write: {error.strerror}", where=str(file)) from None
        self.records = [_record(trial.user_attrs, file) for trial in self.study.get_trials(deepcopy=False)]

    def append(self, record: TrialRecord) -> None:
        """Write a trial that has ended."""
        values = asdict(record)
        outcome = record.outcome()
        self.study.add_trial(frozen_trial(self.search.space, outcome, user_attrs={RECORD: values}))
        self.records.append(record)


def best_record(records: Sequence[TrialRecord], higher_is_better: bool) -> TrialRecord | None:
    """The complete trial with the best value, the first of equal ones; None if there is none."""
    complete = [record for record in records if record.state == "complete" and record.value is not None]
    sign = -1.0 if higher_is_better else 1.0
    return min(complete, key=lambda record: (sign * (record.value or 0.0), record.number), default=None)


def _mend(file: Path) -> None:
    """Remove a line without an end and the lock of a killed process."""
    for left in file.parent.glob(f"{file.name}.*"):
        left.unlink(missing_ok=True)  # the lock of Optuna, and what it renames it to
    if not file.exists():
        return
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        file.write_bytes(whole)


def _record(attributes: dict[str, Any], file: Path) -> TrialRecord:
    try:
        values = json.loads(json.dumps(attributes[RECORD]))
        looks = {int(number): value for number, value in values["looks"].items()}
        return TrialRecord(**{**values, "looks": looks, "seed_values": tuple(values["seed_values"])})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FledgeError(f"damaged: no trial of a sweep ({first_line(error)})", where=str(file)) from None


def check_settings(file: Path, settings: dict[str, Any]) -> bool:
    """Whether the search was begun before. Raises FledgeError, with each key that differs, if it was begun with other
    settings."""
    if not file.exists():
        return False
    changed = changed_leaves(read_json(file, dict[str, Any]), json.loads(json.dumps(settings)))
    if changed:
        lines = "".join(f"\n  {key}: {_short(before)} -> {_short(after)}" for key, before, after in changed)
        raise FledgeError(f"this search was begun with other settings:{lines}", where=str(file),
                          hint="write them as they were, or choose another --out")  # fmt: skip
    return True


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 160 else text[:157] + "…"


def describe_space(space: Sequence[Parameter]) -> list[str]:
    """The parameters as they are written."""
    return [one.describe() for one in space]

"""The hash of the thresholds that results of held-out groups were read with: the file is written once, before they are read."""

import json
from pathlib import Path

from fledge.diagnosis.thresholds import thresholds_hash
from fledge.errors import FledgeError
from fledge.run.text_files import write_json

FILE = Path(__file__).with_name("frozen.json")


def frozen_hash() -> str | None:
    """The hash that is frozen; None: none is."""
    return json.loads(FILE.read_text(encoding="utf-8"))["thresholds"] if FILE.exists() else None


def freeze() -> str:
    """Freeze the thresholds as they are; returns their hash."""
    write_json(FILE, {"thresholds": thresholds_hash()})
    return thresholds_hash()


def check_frozen() -> None:
    """Raise FledgeError unless the thresholds are those that are frozen."""
    frozen = frozen_hash()
    if frozen == thresholds_hash():
        return
    state = "are not frozen" if frozen is None else "have changed since they were frozen"
    raise FledgeError(
        f"the thresholds {state}: results of held-out groups are not read",
        where=str(FILE),
        hint="tune on --group dev, then freeze them: fledge doctor bench --freeze",
    )

"""The thresholds of all checks, from one file, so that they can be frozen before a test."""

import hashlib
import json
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("thresholds.json")


@cache
def thresholds() -> dict[str, dict[str, float]]:
    """All thresholds: section (file of causes or of figures) → name → number."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def threshold(section: str, name: str) -> float:
    """One threshold."""
    return thresholds()[section][name]


def thresholds_hash() -> str:
    """The SHA-256 of the file of thresholds."""
    return hashlib.sha256(FILE.read_bytes()).hexdigest()

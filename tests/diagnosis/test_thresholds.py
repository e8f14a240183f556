"""The file of thresholds: all that is asked for stands in it, and all that stands in it is asked for."""

import hashlib
import re
from pathlib import Path

import fledge.diagnosis
from fledge.diagnosis.thresholds import FILE, threshold, thresholds, thresholds_hash

ROOM = Path(fledge.diagnosis.__file__).parent
ASKED = re.compile(r'threshold\(\s*"(\w+)",\s*"(\w+)"\s*\)')
SECTION = re.compile(r'def _limit\(name: str\) -> float:\n(?:    """.*?"""\n)?    return threshold\("(\w+)", name\)')
LIMIT = re.compile(r'_limit\(\s*"(\w+)"\s*\)')
OWN = ("rates", "schedules", "batch", "duration", "precision", "evaluation", "machine", "symptoms", "curves", "facts",
       "expectations")  # fmt: skip


def _asked() -> set[tuple[str, str]]:
    found = set()
    for path in ROOM.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        found |= set(ASKED.findall(text))
        if section := SECTION.search(text):
            found |= {(section[1], name) for name in LIMIT.findall(text)}
    return found


def test_every_threshold_that_is_asked_for_exists():
    assert _asked()
    assert not [one for one in _asked() if one[1] not in thresholds().get(one[0], {})]


def test_no_threshold_is_left_over():
    asked = _asked() | {("symptoms", f"{name}_not_finite") for name in ("loss", "grad_norm")}
    assert not [(section, name) for section in OWN for name in thresholds()[section] if (section, name) not in asked]


def test_the_hash_is_that_of_the_file():
    assert thresholds_hash() == hashlib.sha256(FILE.read_bytes()).hexdigest()
    assert threshold("rates", "far") > threshold("rates", "some") > threshold("rates", "near")

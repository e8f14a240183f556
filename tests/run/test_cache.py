"""Cached benchmark results are used again, and never when the file is damaged or belongs to another machine."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.run.cache import BenchmarkCache, cache_folder
from fledge.run.startup import StartupTimer

KEY = {"runtime": {"cpu": "one", "cores": 2}, "torch": "2.13"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for each test."""
    monkeypatch.setenv("FLEDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _never() -> float:
    raise AssertionError("measured again")


def _stored(key: object = KEY, **values: object) -> Path:
    measured = BenchmarkCache(key)  # type: ignore[arg-type]
    for name, value in values.items():
        measured.get_or_measure(name, lambda value=value: value)
    measured.save()
    return measured.file


def test_cache_folder_follows_the_environment_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("FLEDGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "fledge"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "fledge"


def test_a_figure_is_measured_once_and_then_read_from_the_file_with_its_date() -> None:
    first = BenchmarkCache(KEY)
    assert first.get_or_measure("a", lambda: 1.5) == 1.5 and first.get_or_measure("a", _never) == 1.5
    first.save()
    second = BenchmarkCache(KEY)
    assert second.get_or_measure("a", _never) == 1.5
    assert (second.recalled, second.new, second.measured_at) == (["a"], [], first.measured_at)


def test_another_key_or_remeasure_measures_the_figure_again() -> None:
    _stored(a=1.0)
    assert BenchmarkCache({**KEY, "torch": "2.14"}).get_or_measure("a", lambda: 2.0) == 2.0
    assert BenchmarkCache(KEY, remeasure=True).get_or_measure("a", lambda: 3.0) == 3.0


def test_new_figures_are_added_to_the_stored_ones() -> None:
    _stored(a=1.0)
    _stored(b=2.0)
    both = BenchmarkCache(KEY)
    assert (both.get_or_measure("a", _never), both.get_or_measure("b", _never)) == (1.0, 2.0)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format": 1}', b'{"format": 9, "key": {}, "values": {}, "when": ""}'],
)
def test_a_damaged_file_is_reported_and_the_figure_measured_again(content: bytes) -> None:
    file, notes = _stored(a=1.0), list[str]()
    file.write_bytes(content)
    measured = BenchmarkCache(KEY, notes.append)
    assert measured.get_or_measure("a", lambda: 2.0) == 2.0
    assert len(notes) == 1 and str(file) in notes[0]
    measured.save()
    assert BenchmarkCache(KEY, notes.append).get_or_measure("a", _never) == 2.0 and len(notes) == 1


def test_a_file_with_the_key_of_another_machine_is_not_used() -> None:
    file, notes = _stored(a=1.0), list[str]()
    stored = json.loads(file.read_text())
    stored["key"]["runtime"]["cpu"] = "two"
    file.write_text(json.dumps(stored))
    assert BenchmarkCache(KEY, notes.append).get_or_measure("a", lambda: 2.0) == 2.0
    assert "another machine" in notes[0]


def test_an_unwritable_cache_folder_gives_a_note_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FLEDGE_CACHE", str(tmp_path / "file"))
    notes: list[str] = []
    measured = BenchmarkCache(KEY, notes.append)
    assert measured.get_or_measure("a", lambda: 1.0) == 1.0
    measured.save()
    assert any("not kept" in note for note in notes)


@given(st.dictionaries(st.text(max_size=8), st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8), max_size=4))
def test_every_stored_figure_is_read_back_unchanged(values: dict[str, object]) -> None:
    key = {**KEY, "names": sorted(values)}
    first = BenchmarkCache(key, remeasure=True)
    for name, value in values.items():
        first.get_or_measure(name, lambda value=value: value)
    first.save()
    second = BenchmarkCache(key)
    assert {name: second.get_or_measure(name, _never) for name in values} == values


def test_startup_phases_do_not_overlap_and_are_all_listed() -> None:
    startup = StartupTimer()
    with startup.phase("data"), startup.phase("autotune"):
        pass
    startup.reassign("compile", 2.0, out_of="autotune")
    assert set(startup.phases) == {"imports", "data", "autotune", "compile"}
    assert startup.phases["compile"] == 2.0 and startup.phases["autotune"] == pytest.approx(-2.0, abs=0.5)
    assert startup.phases["data"] >= 0
    written = startup.as_dict()
    assert written["ready_seconds"] > 0 and written["compile_seconds"] == 2.0
    assert startup.line().startswith("first step done after ") and "compile 2.0 s" in startup.line()

"""The speed of earlier stages: what is kept, what counts as alike, and what a damaged file does."""

from dataclasses import replace
from pathlib import Path

import pytest

from fledge.plan.history import MIN_SPREAD, PastStage, UsualSpeed, history_file, past_stages, remember, usual_speed

STAGE = PastStage(machine="m", kind="sft", precision="bf16", parameters=1_000_000, trained=1_000_000, flops_per_second=1e11)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEDGE_CACHE", str(tmp_path / "cache"))


def _usual(**changes: object) -> UsualSpeed | None:
    wanted = {"machine": "m", "kind": "sft", "precision": "bf16", "parameters": 1_000_000, "trained": 1_000_000, **changes}
    return usual_speed(past_stages(), **wanted)  # type: ignore[arg-type]


def test_the_newest_stages_alike_decide() -> None:
    assert _usual() is None
    for speed in (9e9, 1e11, 1e11, 1.1e11, 1.3e11, 1.1e11):
        remember(replace(STAGE, flops_per_second=speed), print)
    usual = _usual()
    assert usual is not None and usual.flops_per_second == 1.1e11 and usual.count == 5
    assert usual.spread == pytest.approx(1.3 / 1.1 - 1)


def test_another_machine_kind_precision_or_size_is_not_alike() -> None:
    remember(STAGE, print)
    usual = _usual(parameters=3_900_000, trained=260_000, precision=None)
    assert usual is not None and usual.spread == MIN_SPREAD
    for changes in ({"machine": "n"}, {"kind": "pretrain"}, {"precision": "fp32"}, {"parameters": 4_100_000}, {"trained": 90}):
        assert _usual(**changes) is None


def test_lines_that_cannot_be_read_are_left_out() -> None:
    remember(STAGE, print)
    with history_file().open("a", encoding="utf-8") as lines:
        lines.write('{"machine": 1\n[]\n{"kind": "sft"}\n{"machine": "m", "kind": "sft", "precision": "bf16", '
                    '"parameters": 0, "trained": 1, "flops_per_second": 1.0}\n')  # fmt: skip
    remember(replace(STAGE, flops_per_second=2e11), print)
    assert [stage.flops_per_second for stage in past_stages()] == [1e11, 2e11]
    history_file().write_bytes(b"\xff\xfe")
    assert past_stages() == []


def test_a_cache_that_cannot_be_written_is_told_and_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLEDGE_CACHE", str(tmp_path / "file"))
    notes: list[str] = []
    remember(STAGE, notes.append)
    assert len(notes) == 1 and "not kept for later plans" in notes[0]

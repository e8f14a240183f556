"""The console of a run: what a narrow terminal shows, and a start whose clock is set."""

import io
import time

import pytest

from fledge.run.console import progress_bar
from fledge.run.startup import StartupTimer
from fledge.run.terminal import Terminal

FIGURES = "loss 3.214 · ppl 24.9 · lr 0.0003 · 12,345 tok/s · 1.2 GiB · 2 h 5 min left"


@pytest.mark.parametrize("width", [50, 80, 200])
def test_bar_and_counter_stay_on_a_narrow_terminal(width: int) -> None:
    file = io.StringIO()
    terminal = Terminal(file=file, width=width, soft_wrap=True, color_system=None)
    bar = progress_bar(terminal)
    bar.add_task("pretrain", total=1200, completed=345, text=FIGURES)
    terminal.print(bar.get_renderable(), soft_wrap=False)
    lines = [line.rstrip() for line in file.getvalue().splitlines() if line.strip()]
    assert len(lines) == 1 and len(lines[0]) <= width
    assert lines[0].startswith("pretrain ━") and " 345/1200 " in lines[0]
    assert lines[0].endswith("left" if width == 200 else "…")


def test_a_clock_that_is_set_back_gives_no_negative_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    timer, now = StartupTimer(), time.time()
    monkeypatch.setattr(time, "time", lambda: now - 7200)
    assert timer.as_dict()["ready_seconds"] > 0 and StartupTimer().as_dict()["ready_seconds"] >= 0

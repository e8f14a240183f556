"""Lines that are read by what was understood of earlier ones give what a full reading gives."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.training_log import read_logs
from fledge.training_log.fast_lines import LineReader
from fledge.training_log.line_grammar import LineFigures, read_line
from tests.support.pace import ratio_to_yardstick

VALUES = st.one_of(
    st.just("0"), st.just("0.0000"), st.integers(-5, 99_999).map(str), st.integers(1000, 9_999_999).map("{:,}".format),
    st.floats(-10, 10).map("{:.4f}".format), st.floats(0, 1).map("{:.2e}".format), st.just("nan"), st.just("n/a"),
)  # fmt: skip
SHAPES = (
    "Epoch:[1/2]({}/1500), loss: {}, aux_loss: {}, lr: {}, epoch_time: 3.0min",
    "iter {}: loss {}, time {}ms, mfu {}%",
    "step {} | loss: {} | lr: {} | tok/sec: {} | mem: 1.5GiB",
    "{{'loss': {}, 'grad_norm': {}, 'learning_rate': {}, 'epoch': {}}}",
    "step {}: loss--{} - lr-{} (x{})",
)


def written(found: LineFigures) -> str:
    """The figures as text, so that one that is no number equals itself; the sign of a zero does not count."""
    return repr(found).replace("-0.0,", "0.0,")


@settings(max_examples=25)
@given(st.sampled_from(SHAPES), st.lists(st.tuples(VALUES, VALUES, VALUES, VALUES), min_size=8, max_size=30))
def test_fast_reading_is_full_reading(shape: str, rows: list[tuple[str, str, str, str]]) -> None:
    lines = [shape.format(*row) for row in rows]
    reader = LineReader()

    found = [reader.read(line) for line in lines]

    full = [read_line(line) for line in lines]
    assert reader.failed or [*map(written, found)] == [*map(written, full)]


@pytest.mark.parametrize("unit", ["", "ms", "%"])
def test_figure_that_was_zero_at_first(unit: str) -> None:
    lines = [f"step {step} | loss: 2.5 | time: {0 if step < 40 else step - 39}{unit}" for step in range(1, 120)]
    reader = LineReader()

    found = [reader.read(line) for line in lines]

    assert not reader.failed
    assert found == [read_line(line) for line in lines]


STEPS = 100_000
MOST = 22  # times the yardstick of `tests.support.pace`
PRINTED: dict[str, Callable[[int, float], str]] = {
    "minimind": lambda step, loss: (
        f"Epoch:[{(step - 1) // 25_000 + 1}/4]({(step - 1) % 25_000 + 1}/25000), loss: {loss:.4f}, logits_loss: {loss:.4f}, "
        f"aux_loss: 0.0000, lr: {1 / step:.8f}, epoch_time: 1.0min"
    ),
    "nanogpt": lambda step, loss: f"iter {step}: loss {loss:.4f}, time {100 * loss:.2f}ms, mfu 5.11%",
    "printed dictionaries": lambda step, loss: str({"loss": loss, "grad_norm": 2 * loss, "learning_rate": 1 / step}),
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", PRINTED)
def test_text_of_100_000_steps(shape: str, tmp_path: Path) -> None:
    draw, print_line = random.Random(7), PRINTED[shape]
    file = tmp_path / "train.log"
    file.write_text("".join(print_line(step, draw.random()) + "\n" for step in range(1, STEPS + 1)))
    (log,) = read_logs(file)
    assert len(log.series["train/loss"]) == STEPS
    assert ratio_to_yardstick(lambda: read_logs(file)) <= MOST

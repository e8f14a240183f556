"""The loss scale of fp16 falls where gradients overflow, rises after many good steps, and is remembered."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fledge.optim.grad_scaler import BACKOFF, GROWTH, INTERVAL, START, GradScaler

CPU = torch.device("cpu")
GOOD, OVERFLOW = torch.tensor(False), torch.tensor(True)


def test_overflow_halves_the_scale_counts_a_skip_and_resets_the_good_steps() -> None:
    scale = GradScaler(CPU, good=7)
    assert float(scale.scale) == START == 65536
    scale.after(OVERFLOW)
    assert scale.state() == {"scale": START / 2, "good": 0, "skipped": 1}
    scale.after(GOOD)
    scale.after(OVERFLOW)
    assert scale.state() == {"scale": START / 4, "good": 0, "skipped": 2}


def test_scale_doubles_after_two_thousand_consecutive_good_steps() -> None:
    scale = GradScaler(CPU, good=INTERVAL - 2)
    scale.after(GOOD)
    assert scale.state() == {"scale": START, "good": INTERVAL - 1, "skipped": 0}
    scale.after(GOOD)
    assert scale.state() == {"scale": 2 * START, "good": 0, "skipped": 0}
    late = GradScaler(CPU, good=INTERVAL - 1)
    late.after(OVERFLOW)
    assert late.state() == {"scale": START / 2, "good": 0, "skipped": 1}


def _expected_state(steps: list[bool], scale: float, good: int) -> dict[str, float | int]:
    skipped = 0
    for overflow in steps:
        if overflow:
            scale, good, skipped = scale * BACKOFF, 0, skipped + 1
        elif good + 1 == INTERVAL:
            scale, good = scale * GROWTH, 0
        else:
            good += 1
    return {"scale": scale, "good": good, "skipped": skipped}


@given(steps=st.lists(st.booleans(), max_size=30), good=st.integers(INTERVAL - 20, INTERVAL - 1), restore_at=st.integers(0, 30))
def test_any_sequence_of_steps_follows_the_rule_also_across_save_and_restore(
    steps: list[bool], good: int, restore_at: int
) -> None:
    scale = GradScaler(CPU, good=good)
    for number, overflow in enumerate(steps):
        if number == restore_at:
            state = scale.state()
            scale = GradScaler(CPU, float(state["scale"]), int(state["good"]), int(state["skipped"]))
        scale.after(torch.tensor(overflow))
    assert scale.state() == _expected_state(steps, START, good)

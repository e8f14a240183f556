"""`micro_batch_size: auto` without `tokens_per_step`: few rows get enough updates."""

import pytest

from fledge.plan.horizon import LARGEST_AUTO, LEAST_ROWS, WANTED_UPDATES, batch_for_updates, pinned_batch, sized_batch
from fledge.recipe.schema import BatchConfig


class Rows:
    """Packed rows of an epoch."""

    packed_length = 128

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def packed_rows_in(self, epochs: float) -> float:
        return epochs * self.rows


@pytest.mark.parametrize(
    ("rows", "kind", "expected"), [(10, "sft", 1), (650, "sft", 2), (2500, "sft", 8), (90_000, "sft", 16), (10, "kto", 8)]
)
def test_the_batch_leaves_enough_updates(rows: int, kind: str, expected: int) -> None:
    assert batch_for_updates(rows, kind, LARGEST_AUTO) == expected
    assert expected == LEAST_ROWS.get(kind, 1) or rows / expected >= WANTED_UPDATES


def test_the_plan_says_what_was_chosen() -> None:
    batch, notes = sized_batch(BatchConfig(micro_batch_size="auto"), "sft", "3 epochs", Rows(220))  # type: ignore[arg-type]
    assert (batch.micro_batch_size, notes) == (2, ["micro-batches of 2 rows (auto): 660 packed rows are about 330 updates"])
    batch, notes = sized_batch(BatchConfig(micro_batch_size="auto"), "dpo", "60 steps", Rows(220))  # type: ignore[arg-type]
    assert (batch.micro_batch_size, notes) == (LARGEST_AUTO, ["micro-batches of 16 rows (auto): the stage has 60 steps"])
    batch, _ = sized_batch(BatchConfig(micro_batch_size="auto", gradient_accumulation_steps=2), "sft", "3 epochs", Rows(900))  # type: ignore[arg-type]
    assert batch.micro_batch_size == 4


def test_a_number_stays_as_it_is() -> None:
    batch = BatchConfig(micro_batch_size=16)
    assert sized_batch(batch, "sft", "3 epochs", Rows(900)) == (batch, [])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("batch", "duration", "rows", "pinned"),
    [
        ({"micro_batch_size": "auto"}, "3 epochs", 220, {"micro_batch_size": 2}),
        ({"micro_batch_size": "auto", "gradient_accumulation_steps": 2}, "3 epochs", 900,
         {"micro_batch_size": 4, "merge_micro_batches": True}),
        ({"micro_batch_size": 16}, "0.5 epochs", 20, {"micro_batch_size": 10}),
        ({"micro_batch_size": 4, "gradient_accumulation_steps": 2}, "3 epochs", 20, {}),
    ],
)  # fmt: skip
def test_a_pinned_batch_is_the_same_under_another_duration(
    batch: dict[str, object], duration: str, rows: int, pinned: dict[str, object]
) -> None:
    written, data = BatchConfig.model_validate(batch), Rows(rows)
    sized, _ = sized_batch(written, "sft", duration, data)  # type: ignore[arg-type]
    planned = sized.micro_batch_rows * sized.gradient_accumulation_steps
    assert pinned_batch(written, planned) == pinned
    again, _ = sized_batch(BatchConfig.model_validate(batch | pinned), "sft", "40 steps", data)  # type: ignore[arg-type]
    assert again.micro_batch_rows * again.gradient_accumulation_steps == planned
    assert again.merge_micro_batches == written.merge_micro_batches or sized.gradient_accumulation_steps == 1


def test_an_update_of_tokens_has_as_many_rows_under_any_duration() -> None:
    assert pinned_batch(BatchConfig.model_validate({"tokens_per_step": 1024}), 8) == {}

"""Prescriptions in the words of other trainers."""

from typing import Any

import pytest

from fledge.diagnosis import Case
from fledge.doctor.synonyms import DURATIONS, HUGGING_FACE, KEYS, in_dialect
from fledge.recipe.schema import Recipe
from fledge.recipe.schema_keys import KINDS, has_path
from fledge.training_log import TrainingLog, TrainingSettings

LENGTHS: dict[str, Any] = {"steps": 400.0, "epochs": 2.0, "batch_tokens": 8192.0}


def case(source: str, **settings: Any) -> Case:
    return Case(log=TrainingLog(source=source, path="log", series={}, settings=TrainingSettings(kind="sft", **settings)))


@pytest.mark.parametrize("trainer", KEYS)
def test_every_key_is_one_of_the_recipe(trainer: str) -> None:
    unknown = [
        key for key in KEYS[trainer] if not has_path(Recipe, key) and not any(has_path(kind, key) for kind in KINDS.values())
    ]
    assert unknown == []
    assert set(DURATIONS) <= set(KEYS) and "duration" not in KEYS[trainer]


@pytest.mark.parametrize(
    ("source", "written", "line"),
    [
        ("Hugging Face trainer_state.json", "1200 steps", "max_steps = 1200"),
        ("Hugging Face trainer_state.json", "1.5 epochs", "num_train_epochs = 1.5"),
        ("Hugging Face trainer_state.json", "8192000 tokens", "max_steps = 1000"),
        ("log of LLaMA-Factory", "1200 steps", "max_steps = 1200"),
        ("lines of nanoGPT", "3 epochs", "max_iters = 600"),
        ("lines of nanoGPT", "1200 steps", "max_iters = 1200"),
        ("lines of minimind", "1200 steps", "epochs = 6"),
        ("lines of minimind", "50 steps", "epochs = 1"),
        ("lines of LitGPT", "20000 tokens", "train.max_tokens = 20000"),
    ],
)
def test_a_duration_has_the_key_that_counts_in_its_unit(source: str, written: str, line: str) -> None:
    assert in_dialect({"stages.sft.duration": written}, case(source, **LENGTHS)) == [line]


def test_a_duration_that_cannot_be_counted_in_a_unit_of_the_trainer_stays_as_it_is() -> None:
    assert in_dialect({"stages.sft.duration": "3 epochs"}, case("nanoGPT")) == ["duration (in fledge) = 3 epochs"]


def test_more_answers_to_a_prompt_have_a_name_in_trl() -> None:
    assert KEYS[HUGGING_FACE]["rollout.num_generations"] == "num_generations"
    assert in_dialect({"stages.grpo.rollout.num_generations": 16}, case("TRL")) == ["num_generations = 16"]

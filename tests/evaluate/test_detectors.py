"""Refusals and answers off topic, told on labelled answers that the rules were not made from."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fledge.evaluate.metrics import Answer, measure_answers
from fledge.evaluate.metrics.likelihood import gains, gains_over_others, other_prompts
from fledge.evaluate.metrics.off_topic import is_off_topic
from fledge.evaluate.metrics.refusal import answer_kind
from fledge.model.loading import load_model
from tests.evaluate.labelled import read
from tests.support.transformers_models import write_model


def rows(name: str, split: str) -> list[dict[str, Any]]:
    """The labelled answers of a split."""
    return [row for row in read(name) if row["split"] == split]


def precision_and_recall(found: list[bool], labels: list[bool]) -> tuple[float, float]:
    """Of answers that are told and of those that are labelled."""
    right = sum(told and label for told, label in zip(found, labels, strict=True))
    return right / sum(found), right / sum(labels)


@pytest.mark.parametrize(("name", "positive"), [("refusals", "refusal"), ("topics", "off_topic")])
def test_there_are_enough_labelled_answers_of_models_and_in_both_languages(name: str, positive: str) -> None:
    labelled = read(name)
    assert len(labelled) >= 300 and len({(row["prompt"], row["answer"]) for row in labelled}) >= 0.98 * len(labelled)
    assert sum(row["source"] != "written" for row in labelled) >= 150
    for split in ("development", "held_out"):
        counts = Counter((row["prompt"].isascii(), row["label"] == positive) for row in rows(name, split))
        assert len(counts) == 4 and min(counts.values()) >= 15
    seen = {(row["prompt"], row["answer"]) for row in rows(name, "development")}
    assert not any((row["prompt"], row["answer"]) in seen for row in rows(name, "held_out"))


@pytest.mark.parametrize(("split", "precision", "recall"), [("development", 0.97, 0.95), ("held_out", 0.97, 0.91)])
def test_refusals_are_told(split: str, precision: float, recall: float) -> None:
    labelled = rows("refusals", split)
    found = [answer_kind(row["answer"], row["prompt"]) == "refusal" for row in labelled]
    measured = precision_and_recall(found, [row["label"] == "refusal" for row in labelled])
    assert measured[0] >= precision and measured[1] >= recall


def test_an_admission_is_no_refusal() -> None:
    labelled = [row for row in read("refusals") if row["label"] == "admission"]
    assert sum(answer_kind(row["answer"], row["prompt"]) == "admission" for row in labelled) >= 0.85 * len(labelled)


@pytest.mark.parametrize(("split", "precision", "recall"), [("development", 0.94, 0.93), ("held_out", 0.89, 0.93)])
def test_answers_off_topic_are_told(split: str, precision: float, recall: float) -> None:
    labelled = rows("topics", split)
    found = [
        is_off_topic(
            Answer(
                prompt=row["prompt"],
                given=row["answer"],
                expected=row.get("expected"),
                gain=row["gain"],
                gain_over_others=row["gain_over_others"],
            )
        )
        is True
        for row in labelled
    ]
    measured = precision_and_recall(found, [row["label"] == "off_topic" for row in labelled])
    assert measured[0] >= precision and measured[1] >= recall


def test_without_a_gain_only_an_empty_answer_is_told() -> None:
    assert is_off_topic(Answer(prompt="What is a cat?", given="  ")) is True
    assert measure_answers(["off_topic"], [Answer(prompt="What is a cat?", given="A dog.")]) == [{}]


def test_a_gain_is_the_difference_of_the_log_probabilities_of_transformers(tmp_path: Path) -> None:
    theirs = write_model(tmp_path, "Llama")
    ours = load_model(tmp_path)
    prompts, answers, empty = [[1, 5, 9, 7], [1, 11], [1, 3]], [[8, 6, 4], [12, 13, 14, 15, 16], []], [1, 2]

    def log_probability(prompt: list[int], answer: list[int]) -> float:
        with torch.no_grad():
            logps = theirs(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
        return sum(float(logps[len(prompt) + place - 1, token]) for place, token in enumerate(answer))

    found = gains(ours, prompts, answers, empty)
    for prompt, answer, gain in zip(prompts[:2], answers[:2], found[:2], strict=True):
        expected = (log_probability(prompt, answer) - log_probability(empty, answer)) / len(answer)
        assert gain == pytest.approx(expected, abs=1e-4)
    assert found[2] is None and gains(ours, [[1] * 60], [[2] * 60], empty) == [None]
    for number, over in enumerate(gains_over_others(ours, prompts, answers)[:2]):
        own, *others = [log_probability(prompt, answers[number]) for prompt in sorted(prompts, key=prompts[number].__ne__)]
        assert over == pytest.approx((own - max(others)) / len(answers[number]), abs=1e-4)


def test_other_prompts_are_different_and_far_from_each_other() -> None:
    prompts = [[number] for number in range(8)]
    assert [one[0] for one in other_prompts(prompts)] == [(2,), (4,), (6,)]
    assert other_prompts([[1], [2], [1], [3]]) == [[(2,), (3,), (2,), (1,)], [(3,), (1,), (3,), (2,)]]
    assert other_prompts([[1], [1]]) == other_prompts([]) == []


def test_an_answer_that_fits_another_prompt_better_is_off_topic() -> None:
    answer = Answer(prompt="What is a cat?", given="Paris is the capital of France.", gain=0.5)
    assert is_off_topic(replace(answer, gain_over_others=-1.0)) is True
    assert is_off_topic(replace(answer, prompt="What is the capital of France?", gain_over_others=1.5)) is False

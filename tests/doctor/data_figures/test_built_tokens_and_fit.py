"""Tokens that were built beside those of the files, and whether answers belong to their prompts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fledge.data import StageDataset
from fledge.diagnosis.data_figures import ConversationShape, read_sequences
from fledge.diagnosis.data_figures.prompt_fit import misplaced_answers
from fledge.diagnosis.measures import MEASURES
from fledge.doctor.data_figures import dataset_figures
from fledge.doctor.data_figures.loading import UpdateSize, read_batches
from fledge.tokenizer import Tokenizer
from tests.doctor.data_figures.support import changed, sentence, values
from tests.support.sources import jsonl, prepare

COUNT = 200


def echoes(shuffled: bool) -> list[dict[str, Any]]:
    """Conversations whose answers take up words of the question; `shuffled`: of another question."""
    draw = np.random.default_rng(0)
    questions = [sentence(draw) for _ in range(COUNT)]
    answers = [" ".join(question.split()[:3]) + " yes" for question in questions]
    order = draw.permutation(COUNT) if shuffled else range(COUNT)
    return [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answers[number]}]}
        for question, number in zip(questions, order, strict=True)
    ]


def built(folder: Path, rows: list[dict[str, Any]], tokenizer: Tokenizer) -> StageDataset:
    """The rows as the data of an sft stage."""
    return prepare("sft", jsonl(folder / "rows.jsonl", rows), tokenizer, max_seq_len=256)


@pytest.fixture(scope="module")
def data(chatml: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> StageDataset:
    return built(tmp_path_factory.mktemp("echoes"), echoes(False), chatml)


def test_healthy_data(data: StageDataset, chatml: Tokenizer) -> None:
    found = values(dataset_figures(data, chatml))
    assert found["prompt_tokens_differ"] == found["answer_tokens_differ"] == 0.0
    assert found["control_tokens_split"] == [] and found["text_differs"] == 0.0
    assert found["answer_fit_z"] > 8 and found["answer_fit"] > 0.1
    assert found["answer_tokens"] > 3
    assert {f"data/{name}" for name in found} <= set(MEASURES)


def test_answers_of_other_prompts(chatml: Tokenizer, tmp_path: Path) -> None:
    found = values(dataset_figures(built(tmp_path, echoes(True), chatml), chatml))
    assert abs(found["answer_fit_z"]) < 4
    assert abs(found["answer_fit"]) < 0.06


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_the_share_of_answers_that_stand_with_other_questions(chatml: Tokenizer, tmp_path: Path, share: float) -> None:
    rows, draw = echoes(False), np.random.default_rng(1)
    moved = np.flatnonzero(draw.random(COUNT) < share)
    answers = [rows[number]["messages"][1] for number in np.roll(moved, 1)]
    for number, answer in zip(moved, answers, strict=True):
        rows[number]["messages"] = [rows[number]["messages"][0], answer]
    found = values(dataset_figures(built(tmp_path, rows, chatml), chatml))
    assert abs(found["answers_misplaced"] - len(moved) / COUNT) < 0.1


def test_a_small_part_of_the_data_says_nothing_of_where_answers_belong(data: StageDataset, chatml: Tokenizer) -> None:
    read = read_sequences(read_batches(data.train, UpdateSize(), 200), data.train.examples, splits=False)
    answers = ConversationShape.of(chatml).answers(read.tokens, read.offsets)
    assert misplaced_answers(read, answers, 800) and not misplaced_answers(read, answers, 801)


def test_noise_in_answers(data: StageDataset, chatml: Tokenizer) -> None:
    def noise(tokens: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        place = int(np.argmax(weights > 0))
        tokens[place] = (tokens[place] + 1) % chatml.vocab_size
        return tokens, weights

    found = values(dataset_figures(changed(data, noise), chatml))
    assert found["prompt_tokens_differ"] == 0.0
    assert found["answer_tokens_differ"] == pytest.approx(1 / found["answer_tokens"], rel=0.2)


def test_ids_of_another_tokenizer(data: StageDataset, chatml: Tokenizer) -> None:
    last = chatml.vocab_size - 1
    control = [number for number, token in chatml.core.get_added_tokens_decoder().items() if token.special]

    def mirrored(tokens: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.where(np.isin(tokens, control), tokens, last - tokens).astype(tokens.dtype), weights

    found = values(dataset_figures(changed(data, mirrored), chatml))
    assert found["prompt_tokens_differ"] > 0.3
    assert found["control_tokens_split"] == [] and found["text_differs"] == 1.0


def test_control_tokens_that_are_spelled_out(data: StageDataset, chatml: Tokenizer) -> None:
    start = chatml.core.token_to_id("<|im_start|>")
    pieces = chatml.encode("<|im_start|>")
    assert len(pieces) > 1

    def spelled(tokens: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = [np.asarray(pieces if token == start else [token], tokens.dtype) for token in tokens]
        return np.concatenate(parts), np.repeat(weights, [len(part) for part in parts])

    found = values(dataset_figures(changed(data, spelled), chatml))
    assert found["control_tokens_split"] == ["<|im_start|>"]
    assert found["text_differs"] == 0.0  # the same text in other tokens


def pairs(by_length: bool) -> list[dict[str, Any]]:
    """Pairs of answers of which the longer one is chosen, always or as often as not."""
    draw = np.random.default_rng(1)
    rows = []
    for number in range(60):
        shorter, longer = sentence(draw, 2, 5), sentence(draw, 8, 12)
        swaps = not by_length and number % 2 == 0
        chosen, rejected = (shorter, longer) if swaps else (longer, shorter)
        rows.append({"prompt": sentence(draw), "chosen": chosen, "rejected": rejected})
    return rows


@pytest.mark.parametrize(("by_length", "share"), [(True, 1.0), (False, 0.5)])
def test_longer_texts_are_chosen(by_length: bool, share: float, chatml: Tokenizer, tmp_path: Path) -> None:
    data = prepare("preference", jsonl(tmp_path / "pairs.jsonl", pairs(by_length)), chatml, max_seq_len=256)
    assert values(dataset_figures(data, chatml))["chosen_longer_text"] == pytest.approx(share, abs=0.05)

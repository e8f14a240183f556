"""What is supervised: healthy data, and data with a fault planted in its arrays or in the trainer's loader."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fledge.data import Batch, PackedDataset, StageDataset
from fledge.data.storage import Examples
from fledge.diagnosis.data_figures import ConversationShape, first_figures, read_sequences
from fledge.diagnosis.data_figures.roles import AnswerRules, role_figures
from fledge.diagnosis.measures import MEASURES
from fledge.doctor.data_figures import dataset_figures
from fledge.doctor.data_figures.loading import UpdateSize, read_batches
from fledge.tokenizer import Message, Tokenizer, load_tokenizer, train_tokenizer
from tests.conftest import TEXTS
from tests.doctor.data_figures.support import changed, dialogues, values
from tests.support.sources import jsonl, prepare
from tests.support.template_families import FAMILIES, TOKENS
from tests.support.templates import with_template

HEALTHY = {
    "batch_shift": 1, "batch_targets_fit": 1.0, "batch_differs": 0.0, "answers_without_weight": 0.0,
    "answer_supervised_share": 1.0, "first_answer_token_supervised": 1.0, "last_prompt_token_supervised": 0.0,
    "prompt_supervised_share": 0.0, "ends_present": 1.0, "ends_supervised": 1.0,
}  # fmt: skip
Shape = ConversationShape


@pytest.fixture(scope="module")
def data(chatml: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> StageDataset:
    """Conversations of one and of two rounds."""
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [*dialogues(80, 1), *dialogues(40, 2, seed=1)]
    return prepare("sft", jsonl(file, rows), chatml, max_seq_len=256)


@pytest.fixture(scope="module")
def ends(chatml: Tokenizer) -> int:
    return chatml.eot_id


def first(data: StageDataset, tokenizer: Tokenizer) -> dict[str, object]:
    """The figures before the first update."""
    batches = read_batches(data.train, UpdateSize(8, 4), 10_000)
    return values(first_figures(data.plan, data.train, batches, tokenizer, data.validation))


def test_healthy_conversations(data: StageDataset, chatml: Tokenizer) -> None:
    found = values(dataset_figures(data, chatml))
    assert {name: found[name] for name in HEALTHY} == HEALTHY
    assert found["built_differs"] == found["template_differs"] == found["duplicate_share"] == 0.0
    assert abs(found["order_z"]) < 3.5 and abs(found["file_order_correlation"]) < 0.5
    assert found["examples"] == 120 and found["vocab_size"] == chatml.vocab_size > found["max_token_id"]
    assert found["bigram_entropy"] > 0 and found["unigram_entropy"] < np.log(chatml.vocab_size)
    assert {f"data/{name}" for name in found} <= set(MEASURES)


def test_the_first_figures_are_those_of_all(data: StageDataset, chatml: Tokenizer) -> None:
    found = first(data, chatml)
    assert {name: found[name] for name in HEALTHY} == HEALTHY
    later = values(dataset_figures(data, chatml))
    assert {name: later[name] for name in found} == found


def test_the_figures_are_the_same_twice_and_change_nothing(data: StageDataset, chatml: Tokenizer) -> None:
    before, state = data.train.fingerprint(), torch.random.get_rng_state()
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    assert dataset_figures(data, chatml) == dataset_figures(data, chatml)
    assert data.train.fingerprint() == before and torch.equal(torch.random.get_rng_state(), state)
    assert np.random.random() == expected


def test_prompts_that_carry_weight(data: StageDataset, chatml: Tokenizer) -> None:
    found = first(changed(data, lambda tokens, weights: (tokens, np.ones_like(weights))), chatml)
    assert found["prompt_supervised_share"] == 1.0 and found["last_prompt_token_supervised"] == 1.0
    assert found["answer_supervised_share"] == found["ends_supervised"] == 1.0 and found["target_share"] == 1.0


def test_questions_that_carry_weight_in_place_of_answers(data: StageDataset, chatml: Tokenizer) -> None:
    found = first(changed(data, lambda tokens, weights: (tokens, 1 - weights)), chatml)
    assert found["answer_supervised_share"] == 0.0 and found["prompt_supervised_share"] == 1.0


@pytest.mark.parametrize(
    ("places", "last_prompt", "first_answer", "end"), [(1, 0.0, 0.0, 1.0), (-1, 1.0, 1.0, 0.0)], ids=["late", "early"]
)
def test_a_mask_that_is_shifted(
    data: StageDataset, chatml: Tokenizer, places: int, last_prompt: float, first_answer: float, end: float
) -> None:
    found = first(changed(data, lambda tokens, weights: (tokens, np.roll(weights, places))), chatml)
    assert found["last_prompt_token_supervised"] == last_prompt
    assert found["first_answer_token_supervised"] == first_answer
    assert found["ends_supervised"] == end and found["ends_present"] == 1.0
    assert found["answer_supervised_share"] < 1.0


def test_ends_without_weight(data: StageDataset, chatml: Tokenizer, ends: int) -> None:
    found = first(changed(data, lambda tokens, weights: (tokens, np.where(tokens == ends, 0, weights))), chatml)
    assert found["ends_present"] == 1.0 and found["ends_supervised"] == 0.0
    assert found["prompt_supervised_share"] == 0.0 and found["answer_supervised_share"] > 0.8


def test_ends_that_are_missing(data: StageDataset, chatml: Tokenizer, ends: int) -> None:
    def without(tokens: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        kept = (tokens != ends) | (weights == 0)
        return tokens[kept], weights[kept]

    found = first(changed(data, without), chatml)
    assert found["ends_present"] == 0.0 and found.get("ends_supervised") is None
    assert found["first_answer_token_supervised"] == 1.0


def test_everything_masked(data: StageDataset, chatml: Tokenizer) -> None:
    found = first(changed(data, lambda tokens, weights: (tokens, np.zeros_like(weights))), chatml)
    assert found["answer_supervised_share"] == found["target_share"] == 0.0


def test_answers_of_which_only_the_last_carries_weight(data: StageDataset, chatml: Tokenizer) -> None:
    def last(tokens: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gaps = np.flatnonzero(weights == 0)
        trained = np.flatnonzero(weights)
        start = gaps[gaps < trained[-1]][-1]
        return tokens, np.where(np.arange(len(tokens)) > start, weights, 0)

    found = first(changed(data, last), chatml)
    assert found["answers_without_weight"] == pytest.approx(40 / 160)
    assert found["answer_supervised_share"] == 1.0 and found["prompt_supervised_share"] == 0.0


def test_a_stage_that_trains_the_last_answers_alone(chatml: Tokenizer, tmp_path: Path) -> None:
    data = prepare("sft", jsonl(tmp_path / "rows.jsonl", dialogues(60, 3)), chatml, max_seq_len=256, train_on_turns="last")
    assert {name: first(data, chatml)[name] for name in HEALTHY} == HEALTHY


def test_answers_that_the_context_cuts_need_no_end(chatml: Tokenizer, tmp_path: Path) -> None:
    data = prepare("sft", jsonl(tmp_path / "rows.jsonl", dialogues(80)), chatml, max_seq_len=40, truncation="keep_start")
    found = dataset_figures(data, chatml)
    assert 0.2 < found["data/truncated_share"].value < 1.0
    assert found["data/ends_present"].value == 1.0 and "of them cut" in found["data/ends_present"].note


def patched(monkeypatch: pytest.MonkeyPatch, change: Callable[[Batch], Batch]) -> None:
    """Let the loader make other batches, as a fault of the trainer would."""
    assemble = PackedDataset._assemble
    monkeypatch.setattr(PackedDataset, "_assemble", lambda self, chosen: change(assemble(self, chosen)))


@pytest.mark.parametrize("offset", [0, 2])
def test_batches_whose_targets_are_at_another_offset(
    data: StageDataset, chatml: Tokenizer, monkeypatch: pytest.MonkeyPatch, offset: int
) -> None:
    def shift(batch: Batch) -> Batch:
        return replace(batch, targets=batch.input_ids.clone() if offset == 0 else batch.targets.roll(-1, dims=1))

    patched(monkeypatch, shift)
    found = first(data, chatml)
    assert found["batch_shift"] == offset and found["batch_targets_fit"] < 0.5
    assert found["prompt_supervised_share"] == 0.0, "the weights are right"


def test_batches_whose_weights_are_not_the_stored_ones(
    data: StageDataset, chatml: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    patched(monkeypatch, lambda batch: replace(batch, loss_weights=(batch.documents > 0).float(), known_target_index=None))
    found = first(data, chatml)
    assert found["batch_differs"] > 0.3 and found["prompt_supervised_share"] == 1.0 and found["batch_shift"] == 1


# -- other templates ----------------------------------------------------------------------------------------------------

ALL_BUT_THE_LAST = {"ended-by-the-next-turn"}  # this template ends no last answer


def read_of(tokenizer: Tokenizer, talks: list[list[Message]]) -> dict[str, object]:
    """The role figures of conversations as the tokenizer encodes them for training."""
    encoded = tokenizer.encode_segments([tokenizer.template.rendering(talk).segments for talk in talks])
    offsets = np.concatenate(([0], np.cumsum([len(one.tokens) for one in encoded]))).astype(np.int64)
    tokens, weights = (np.concatenate([getattr(one, name) for one in encoded]) for name in ("tokens", "weights"))
    examples = Examples(tokens=tokens, weights=weights, offsets=offsets, sequences_per_example=1)
    packed = PackedDataset(examples, 256, tokenizer.pad, 1, split_documents=False)
    batches = [packed.batch(row, 1) for row in range(len(packed))]
    read = read_sequences(batches, examples, splits=False)
    return values(role_figures(read, Shape.of(tokenizer), AnswerRules(only_last=False, most_tokens=4096)))


@pytest.mark.parametrize("name", ["inst", "seq2seq", *FAMILIES])
def test_every_family_of_templates(name: str, chatml: Tokenizer, inst: Tokenizer, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, 420, "seq2seq") if name == "seq2seq" else inst
    if name in FAMILIES:
        core = type(chatml.core).from_str(chatml.core.to_str())
        core.add_special_tokens(list(TOKENS))
        core.save(str(tmp_path / "tokenizer.json"))
        own = with_template(chatml, tmp_path, FAMILIES[name], bos_token="<bos>", eos_token="<eos>")
        core.save(str(tmp_path / "tokenizer.json"))
        tokenizer = load_tokenizer(tmp_path)
        assert own.template.jinja == tokenizer.template.jinja
    draw = [[Message(turn["role"], turn["content"]) for turn in row["messages"]] for row in dialogues(30, 2)]
    found = read_of(tokenizer, draw)
    assert found["first_answer_token_supervised"] == 1.0 and found["last_prompt_token_supervised"] == 0.0
    assert found["answer_supervised_share"] > 0.99 and found["prompt_supervised_share"] == 0.0
    assert found["ends_present"] == (0.5 if name in ALL_BUT_THE_LAST else 1.0)
    assert found["ends_supervised"] == 1.0


def test_a_template_that_refuses_questions_has_no_answers(tmp_path: Path, chatml: Tokenizer) -> None:
    refusing = with_template(chatml, tmp_path, "{{ raise_exception('no') }}")
    shape = ConversationShape.of(refusing)
    assert shape.header == () and not len(shape.answers(np.arange(30), np.asarray([0, 30])))

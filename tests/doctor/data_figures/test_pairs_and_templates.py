"""Pairs, labelled answers, prompts; templates for training and for answering; rows that are encoded again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fledge.data import collect, encode
from fledge.data.encoding import rendering
from fledge.doctor.data_figures import dataset_figures
from fledge.recipe import recipe_from_dict
from fledge.tokenizer import Tokenizer
from tests.doctor.data_figures.support import changed, dialogues, sentence, values
from tests.doctor.data_figures.test_conversations import HEALTHY
from tests.support.sources import UNCLEANED, jsonl, prepare, row


def pairs(count: int = 60) -> list[dict[str, str]]:
    """Pairs of which the chosen answer is the longer one in about three of four."""
    draw, rows = np.random.default_rng(2), []
    for number in range(count):
        long, short = sentence(draw, 8, 12), sentence(draw, 2, 4)
        chosen, rejected = (long, short) if number % 4 else (short, long)
        rows.append({"prompt": f"question {number}", "chosen": chosen, "rejected": rejected})
    return rows


@pytest.mark.parametrize("kind", ["preference", "reward"])
def test_healthy_pairs(chatml: Tokenizer, tmp_path: Path, kind: str) -> None:
    data = prepare(kind, jsonl(tmp_path / "rows.jsonl", pairs()), chatml)
    found = values(dataset_figures(data, chatml))
    assert {name: found[name] for name in HEALTHY} == HEALTHY
    assert found["equal_pairs"] == found["pairs_contradicting"] == 0.0
    assert found["chosen_longer"] == pytest.approx(0.75)
    assert "wrong_side" not in found, "there is no earlier stage"


def test_pairs_whose_prompts_are_shared_in_the_batches(chatml: Tokenizer, tmp_path: Path) -> None:
    data = prepare("preference", jsonl(tmp_path / "rows.jsonl", pairs()), chatml).sharing_prompts()
    found = values(dataset_figures(data, chatml))
    assert {name: found[name] for name in HEALTHY} == HEALTHY


def test_pairs_that_contradict_each_other(chatml: Tokenizer, tmp_path: Path) -> None:
    rows = pairs(40)
    swapped = [{**one, "chosen": one["rejected"], "rejected": one["chosen"]} for one in rows[:10]]
    data = prepare("preference", jsonl(tmp_path / "rows.jsonl", [*rows, *swapped]), chatml)
    assert values(dataset_figures(data, chatml))["pairs_contradicting"] == pytest.approx(0.25)


def test_pairs_that_are_equal(chatml: Tokenizer, tmp_path: Path) -> None:
    data = prepare("preference", jsonl(tmp_path / "rows.jsonl", pairs(40)), chatml)
    stored = data.train.examples
    chosen = {stored.sequence(2 * number)[0].tobytes(): 1 for number in range(stored.count)}
    first = stored.sequence(0)

    def equal(tokens: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (first[0], first[1]) if tokens.tobytes() not in chosen and len(tokens) % 2 else (tokens, weights)

    found = values(dataset_figures(changed(data, equal), chatml))
    rejected = [stored.sequence(2 * number + 1)[0] for number in range(stored.count)]
    assert found["equal_pairs"] == pytest.approx(float(len(rejected[0]) % 2) / stored.count)


@pytest.mark.parametrize(("is_swapped", "wrong"), [(False, 0.0), (True, 1.0)])
def test_the_side_of_the_answers_of_earlier_conversations(
    chatml: Tokenizer, tmp_path: Path, is_swapped: bool, wrong: float
) -> None:
    rows = pairs()
    talks = [row(one["prompt"], one["chosen"]) for one in rows[:40]]
    earlier = prepare("sft", jsonl(tmp_path / "talks.jsonl", talks), chatml).train.examples
    if is_swapped:
        rows = [{**one, "chosen": one["rejected"], "rejected": one["chosen"]} for one in rows]
    data = prepare("preference", jsonl(tmp_path / "rows.jsonl", rows), chatml)
    found = dataset_figures(data, chatml, conversations=earlier)
    assert found["data/wrong_side"].value == wrong and found["data/wrong_side"].note.startswith("40 pairs")


def test_labelled_answers(chatml: Tokenizer, tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    rows = [{"prompt": sentence(draw), "completion": sentence(draw), "label": number % 2 == 0} for number in range(60)]
    found = values(dataset_figures(prepare("kto", jsonl(tmp_path / "rows.jsonl", rows), chatml), chatml))
    assert {name: found[name] for name in HEALTHY} == HEALTHY
    assert found["duplicate_share"] == 0.0 and "equal_pairs" not in found and "built_differs" not in found


def test_prompts_that_a_model_answers(chatml: Tokenizer, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", dialogues(40))
    data = {"train": str(file), "validation": 0, "max_seq_len": 256, "clean": UNCLEANED}
    stage = {"kind": "grpo", "data": data, "rewards": [{"rule": "exact_match"}]}
    tree = {"model": {"max_position_embeddings": 256}, "stages": {"x": stage}}
    built = encode(collect(recipe_from_dict(tree).stages["x"], "x", 1), chatml)
    found = values(dataset_figures(built, chatml))
    assert {name: found[name] for name in HEALTHY} == HEALTHY


# -- templates ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(chatml: Tokenizer, tmp_path: Path) -> Callable[[Callable[[str], str]], Any]:
    """The figure of a template: of training, and of a folder whose exported template is changed."""

    def figure(change: Callable[[str], str]) -> Any:
        data = prepare("sft", jsonl(tmp_path / "rows.jsonl", dialogues(40, 2)), chatml, max_seq_len=256)
        chatml.save(tmp_path / "serving")
        file = tmp_path / "serving" / "chat_template.jinja"
        file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")
        return dataset_figures(data, chatml, serving=tmp_path / "serving")["data/template_differs"]

    return figure


def test_a_template_that_is_the_same_for_answering(served: Callable[[Callable[[str], str]], Any]) -> None:
    assert served(lambda text: text).value == 0.0


def test_an_exported_template_that_differs_by_one_blank(served: Callable[[Callable[[str], str]], Any]) -> None:
    figure = served(
        lambda text: text.replace("<|im_start|>assistant\n' }}{% endif %}", "<|im_start|>assistant \n' }}{% endif %}")
    )
    assert figure.value == 1.0 and "text by the exported template" in figure.note


def test_another_tokenizer_answers(chatml: Tokenizer, inst: Tokenizer, tmp_path: Path) -> None:
    data = prepare("sft", jsonl(tmp_path / "rows.jsonl", dialogues(40)), chatml, max_seq_len=256)
    inst.save(tmp_path / "serving")
    figure = dataset_figures(data, chatml, serving=tmp_path / "serving")["data/template_differs"]
    assert figure.value == 1.0 and "as tokens" in figure.note


def test_a_tokenizer_for_answering_that_is_gone(chatml: Tokenizer, tmp_path: Path) -> None:
    data = prepare("sft", jsonl(tmp_path / "rows.jsonl", dialogues(40)), chatml, max_seq_len=256)
    figure = dataset_figures(data, chatml, serving=tmp_path / "nowhere")["data/template_differs"]
    assert figure.value == 1.0 and "cannot be loaded" in figure.note


# -- rows that are encoded again ----------------------------------------------------------------------------------------


def test_data_that_were_built_by_faulty_code(chatml: Tokenizer, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", dialogues(40, 2))
    with pytest.MonkeyPatch.context() as patch:
        weigh = rendering._apply_turn_weights
        patch.setattr(rendering, "_apply_turn_weights", lambda *arguments: np.roll(weigh(*arguments), 1))
        data = prepare("sft", file, chatml, max_seq_len=256)
        inside = values(dataset_figures(data, chatml))
    found = values(dataset_figures(data, chatml))
    assert found["built_differs"] == 1.0 and inside["built_differs"] == 0.0
    assert found["first_answer_token_supervised"] == inside["first_answer_token_supervised"] == 0.0


def test_files_that_have_changed_are_not_read_again(chatml: Tokenizer, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", dialogues(40))
    data = prepare("sft", file, chatml, max_seq_len=256)
    file.write_text("", encoding="utf-8")
    found = values(dataset_figures(data, chatml))
    assert "built_differs" not in found and "template_differs" not in found and found["ends_supervised"] == 1.0


def test_rows_whose_turns_have_weights(chatml: Tokenizer, tmp_path: Path) -> None:
    rows = dialogues(40, 2)
    for one in rows:
        one["messages"][1]["weight"] = 0
    data = prepare("sft", jsonl(tmp_path / "rows.jsonl", rows), chatml, max_seq_len=256)
    found = values(dataset_figures(data, chatml))
    assert found["answers_without_weight"] == 0.5 and found["answer_supervised_share"] == 1.0
    assert found["built_differs"] == 0.0

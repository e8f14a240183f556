"""Tasks of lm-eval: against fledge's own kinds of sets, against lm-eval's own model, and data that are not there."""

import json
from pathlib import Path
from typing import Any

import pytest

from fledge.errors import FledgeError
from fledge.evaluate.records import SetResult
from fledge.evaluate.sets import EvaluatedModel, load_set
from fledge.generation.loading import load_model_and_tokenizer
from fledge.model.locate import locate_model
from fledge.recipe.sections.evaluation_sets import EvaluationSetConfig
from tests.support.small_model import write_model
from tests.support.smollm2 import smollm2

PAIRS = [{"sentence_good": f"Cat {n} is here.", "sentence_bad": f"Here cat {n} is."} for n in range(6)]
CHOICES = [
    ("What do bees make?", ["honey", "concrete", "a small wooden boat"], 0),
    ("Which animal barks?", ["a fish", "a dog", "a cow that lives on a farm"], 1),
    ("What is the capital of France?", ["London", "Madrid", "Paris"], 2),
    ("What do plants need to grow?", ["light and water", "a telephone", "stones"], 0),
    ("Which is the largest planet?", ["Mars", "Jupiter", "Venus"], 1),
]
SUMS = [{"question": f"What is {n} plus {n}?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"} for n in range(2, 7)]
MEAN = "[{metric: %s, aggregation: mean, higher_is_better: true}]"


def write_tasks(folder: Path, pairs: list[Any], tokens: int = 12) -> None:
    """Files of a task of each kind, with their data."""

    def write(name: str, rows: list[Any], task: str) -> None:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        data = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder}/{name}.jsonl}}}}\n"
        (folder / f"{name}.yaml").write_text(f"{data}test_split: test\n{task}", encoding="utf-8")

    write(
        "pairs",
        pairs,
        'output_type: multiple_choice\ndoc_to_text: ""\ndoc_to_target: 0\nnum_fewshot: 0\n'
        f'doc_to_choice: "{{{{[sentence_good, sentence_bad]}}}}"\nmetric_list: {MEAN % "acc"}\n',
    )
    metrics = ", ".join(f"{{metric: {name}, aggregation: mean, higher_is_better: true}}" for name in ("acc", "acc_norm"))
    write(
        "choices",
        [{"question": question, "choices": choices, "label": label} for question, choices, label in CHOICES],
        'output_type: multiple_choice\ndoc_to_text: "Question: {{question}}\\nAnswer:"\ndoc_to_target: label\n'
        f'doc_to_choice: "{{{{choices}}}}"\nmetric_list: [{metrics}]\n',
    )
    write(
        "sums",
        SUMS,
        'output_type: generate_until\ndoc_to_text: "Question: {{question}}\\nAnswer:"\ndoc_to_target: "{{answer}}"\n'
        f"metric_list: {MEAN % 'exact_match'}\n"
        f'generation_kwargs: {{until: ["\\n\\n", "Question:"], do_sample: false, max_gen_toks: {tokens}}}\n'
        'filter_list: [{name: found, filter: [{function: regex, regex_pattern: "([0-9]+)"}, {function: take_first}]}]\n',
    )
    write(
        "texts",
        [{"text": "The cat sat on the mat. " * 5}, {"text": "Water boils."}],
        'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{text}}"\n'
        "metric_list: [{metric: bits_per_byte}, {metric: byte_perplexity}]\n",
    )


def result_of(asked: EvaluatedModel, kind: str, **settings: Any) -> SetResult:
    """The result of the model on a set."""
    counts: list[int] = []
    one = load_set("name", EvaluationSetConfig.model_validate({"kind": kind, **settings}), "sets.name")
    result = one.evaluate_model(asked, counts.append)
    assert sum(counts) == len(result.items) == one.count
    return result


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> EvaluatedModel:
    """A small model with random weights."""
    return EvaluatedModel(*load_model_and_tokenizer(write_model(tmp_path_factory.mktemp("model"), positions=60)))


def test_tasks_of_lm_eval_give_what_fledge_s_own_sets_give(asked: EvaluatedModel, tmp_path: Path) -> None:
    write_tasks(tmp_path, PAIRS)

    def both(task: str, kind: str, **settings: Any) -> tuple[SetResult, SetResult]:
        theirs = result_of(asked, "lm_eval", task=task, path=str(tmp_path))
        return theirs, result_of(asked, kind, path=str(tmp_path / f"{task}.jsonl"), **settings)

    theirs, own = both("pairs", "minimal_pairs")
    assert [one.values for one in theirs.items] == [one.values for one in own.items]
    assert theirs.metrics["accuracy"] == own.metrics["accuracy"]
    theirs, own = both("choices", "multiple_choice")
    assert [one.values for one in theirs.items] == [one.values for one in own.items]
    assert theirs.metrics == own.metrics and [one.prompt for one in theirs.items] == [one.prompt for one in own.items]
    theirs, own = both("sums", "generation", max_new_tokens=12, extract="([0-9]+)")
    assert [one.given for one in theirs.items] == [one.given for one in own.items]
    theirs, own = both("texts", "text")
    assert theirs.metrics["bits_per_byte"].value == pytest.approx(own.metrics["bits_per_byte"].value, rel=1e-6)
    assert any("lm-eval" in note for note in theirs.notes) and any("follows" in note for note in theirs.notes)


def test_an_adapter_asks_the_first_documents_only_and_again_with_equal_results(asked: EvaluatedModel, tmp_path: Path) -> None:
    write_tasks(tmp_path, PAIRS)
    config = EvaluationSetConfig(kind="lm_eval", task="choices", path=str(tmp_path), max_samples=3, few_shot=1)
    one = load_set("name", config, "sets.name")
    first, again = one.evaluate_model(asked), one.evaluate_model(asked)
    assert first.items == again.items and first.metrics == again.metrics and len(first.items) == 3
    assert first.items[0].prompt.count("Question:") == 2


def test_a_task_whose_data_are_not_here_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refused(*arguments: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refused)
    (tmp_path / "far.yaml").write_text(
        "task: far\ndataset_path: nobody-of-this-name/nothing\noutput_type: multiple_choice\ntest_split: test\n"
        'doc_to_text: ""\ndoc_to_target: 0\ndoc_to_choice: "{{[a, b]}}"\nmetric_list: [{metric: acc}]\n'
    )

    def load(**settings: Any) -> None:
        load_set("name", EvaluationSetConfig.model_validate({"kind": "lm_eval", **settings}), "sets.name")

    with pytest.raises(FledgeError, match="not on this machine, and nothing is downloaded"):
        load(task="far", path=str(tmp_path))
    with pytest.raises(FledgeError, match=r"no folder") as caught:
        load(task="far", path=str(tmp_path / "none"))
    assert caught.value.where == "sets.name.path"


@pytest.mark.slow
def test_lm_eval_s_own_model_and_the_adapter_agree_to_four_digits(tmp_path: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    folder = locate_model(str(smollm2()))
    pairs = [
        {"sentence_good": "The cats sleep.", "sentence_bad": "The cats sleeps."},
        {"sentence_good": "Katherine can't help herself.", "sentence_bad": "Katherine can't help himself."},
        {"sentence_good": "What did she buy?", "sentence_bad": "Did she what buy?"},
        {"sentence_good": "There was a fish.", "sentence_bad": "There was every fish."},
    ]
    tasks = ["pairs", "choices", "sums", "texts"]
    (tmp_path / "tasks").mkdir()
    write_tasks(tmp_path / "tasks", pairs, tokens=24)
    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    model = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=2)
    theirs = simple_evaluate(model=model, tasks=list(tasks), task_manager=manager, bootstrap_iters=0)
    assert theirs is not None
    asked = EvaluatedModel(*load_model_and_tokenizer(folder))
    names = {"acc": "accuracy", "acc_norm": "accuracy_norm"}
    for task in tasks:
        own = result_of(asked, "lm_eval", task=task, path=str(tmp_path / "tasks"))
        numbers = {key: value for key, value in theirs["results"][task].items() if "," in key and isinstance(value, float)}
        expected = {names.get(key.partition(",")[0], key.partition(",")[0]): value for key, value in numbers.items()}
        assert expected and {name: value.value for name, value in own.metrics.items()} == pytest.approx(expected, rel=1e-4)
        answers = [str(sample["resps"][0][0]) for sample in theirs["samples"][task] if task == "sums"]
        assert task != "sums" or [one.given for one in own.items] == answers

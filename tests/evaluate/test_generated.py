"""Answers to validation questions: which tokens are the question, how answers are scored, and what they decide."""

import json
from pathlib import Path

import numpy as np
import pytest

from fledge.data.storage import Examples
from fledge.errors import FledgeError
from fledge.evaluate.answers import mark, score_answers, summary_scores
from fledge.evaluate.generated import last_question
from fledge.evaluate.last_turn import LastTurn
from fledge.evaluate.metrics import METRICS as ANSWERS
from fledge.evaluate.sets.questions import read_questions
from fledge.generation import SamplingParams, load_engine
from fledge.metric_names import ANSWER_METRICS, SELECTION_NAMES
from fledge.plan.evaluation import METRICS
from fledge.recipe import Source, recipe_from_dict
from fledge.run import read_events
from fledge.score import answer
from fledge.tokenizer import Message
from tests.evaluate.test_answers import row
from tests.support import small_runs

END = 9


def examples(*sequences: list[tuple[int, float]], per_example: int = 1) -> Examples:
    """Examples of (token, weight) pairs."""
    flat = [pair for sequence in sequences for pair in sequence]
    return Examples(
        tokens=np.array([token for token, _ in flat]),
        weights=np.array([weight for _, weight in flat], np.float32),
        offsets=np.cumsum([0, *(len(sequence) for sequence in sequences)]),
        sequences_per_example=per_example,
    )


TWO_ROUNDS = [(1, 0), (2, 0), (3, 1), (END, 1), (4, 0), (5, 0), (6, 0.5), (7, 0.5), (END, 0.5), (8, 0)]


def test_the_question_is_all_before_the_last_answer() -> None:
    assert last_question(examples(TWO_ROUNDS), 0, {END}) == ([1, 2, 3, END, 4, 5], [6, 7])


def test_what_a_template_trains_behind_the_end_is_left_out() -> None:
    newline = [(1, 0), (2, 0), (3, 1), (END, 1), (5, 1)]
    assert last_question(examples(newline), 0, {END}) == ([1, 2], [3])


def test_a_pair_is_asked_for_its_chosen_answer() -> None:
    chosen, rejected = [(1, 0), (2, 1), (END, 1)], [(1, 0), (3, 1), (END, 1)]
    data = examples(TWO_ROUNDS, TWO_ROUNDS, chosen, rejected, per_example=2)
    assert last_question(data, 1, {END}) == ([1], [2])


@pytest.mark.parametrize(
    "sequence",
    [[(1, 0), (2, 1), (3, 1)], [(1, 0), (2, 0)], [(1, 1), (END, 1)]],
    ids=["cut before its end", "no answer", "no question"],
)
def test_a_row_without_a_whole_answer_has_no_question(sequence: list[tuple[int, float]]) -> None:
    assert last_question(examples(sequence), 0, {END}) is None


def test_the_scores_are_those_of_the_report_on_all_answers() -> None:
    given = ['{"a":"x","b":null}', '{"a":"y","b":null}', '{"a":"x"', '{"a":"x","b":"z"}']
    rows = [row('{"a":"x","b":null}', text) for text in given]
    marks = [mark(one) for one in rows]
    report = score_answers(rows, marks)
    assert summary_scores(marks) == {name: report[name]["value"] for name in ("exact_match", "valid_json", "f1")}
    assert summary_scores([mark(row("yes", "yes")), mark(row("yes", "no"))]) == {"exact_match": 0.5}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which a tiny model forgets what it knew by heart, while its validation loss falls."""
    folder = tmp_path_factory.mktemp("answers")
    start = small_runs.start_model(folder)
    stage = {
        "kind": "sft",
        "data": {
            "train": str(folder / "codes.jsonl"),
            "validation": str(folder / "mixed.jsonl"),
            "clean": {"decontaminate": False},
        },
        "batch": {"micro_batch_size": 8},
        "optimizer": {"learning_rate": 5e-3},
        "duration": "6 steps",
        "evaluation": {"every_steps": 2, "generated_answers": {"rows": 999, "max_new_tokens": 40}},
        "metric_for_best_model": "exact_match",
        "select_checkpoint": "best",
    }
    return small_runs.train(folder, stage, name="answers", model={"path": str(start)}, tokenizer={"path": str(start)})


def test_a_stage_scores_as_the_command_does(run: Path) -> None:
    after = json.loads((run / "sft" / "eval" / "after.json").read_text())
    result = json.loads((run / "sft" / "result.json").read_text())
    questions = read_questions(Source(path=str(run.parent / "mixed.jsonl")), "file")[0]
    rows = answer(load_engine(run / "sft" / result["model"]), questions, SamplingParams(max_new_tokens=40))
    assert after["exact_match"] == summary_scores([mark(one) for one in rows])["exact_match"] >= 0.4


def test_the_best_checkpoint_has_the_most_exact_answers(run: Path) -> None:
    before = json.loads((run / "sft" / "eval" / "before.json").read_text())
    events = [event for event in read_events(run / "sft" / "events.jsonl") if event["kind"] == "eval"]
    scores = [(0, before["exact_match"]), *((event["step"], event["eval/exact_match"]) for event in events)]
    assert [step for step, _ in scores] == [0, 2, 4, 6]
    losses = [before["loss"], *(event["eval/loss"] for event in events)]
    best = max(zip(scores, losses, strict=True), key=lambda one: (one[0][1], -one[1]))[0]  # the lowest loss of equals
    assert json.loads((run / "sft" / "result.json").read_text())["best_step"] == best[0]


def test_scores_that_the_answers_cannot_have_are_refused(run: Path, tmp_path: Path) -> None:
    start = small_runs.start_model(tmp_path)
    stage = {
        "kind": "sft",
        "data": {"train": str(run.parent / "known.jsonl"), "validation": str(run.parent / "codes.jsonl")},
        "duration": "1 steps",
        "evaluation": {"generated_answers": {}},
        "metric_for_best_model": "f1",
    }
    model = {"model": {"path": str(start)}, "tokenizer": {"path": str(start)}}
    with pytest.raises(FledgeError, match="is a JSON object, which f1 compares"):
        small_runs.train(tmp_path, stage, **model)
    with pytest.raises(FledgeError, match="needs validation data"):
        small_runs.train(tmp_path, {**stage, "data": {**stage["data"], "validation": 0}}, name="second", **model)


def test_a_metric_may_have_the_prefix_of_transformers() -> None:
    stage = {"kind": "sft", "data": {"train": "rows.jsonl"}, "metric_for_best_model": "eval_loss"}
    assert recipe_from_dict({"stages": {"one": stage}}).stages["one"].metric_for_best_model == "loss"


def test_the_metrics_that_choose_are_those_of_the_selection() -> None:
    assert set(SELECTION_NAMES) == set(METRICS) and {"rouge_l", "off_topic"} < set(METRICS)
    assert set(ANSWER_METRICS) == set(ANSWERS) and not METRICS["off_topic"].greater_is_better


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"kind": "sft", "metric_for_best_model": "f1"}, "add the section evaluation.generated_answers"),
        ({"kind": "sft", "metric_for_best_model": "length"}, "'length' cannot choose a checkpoint"),
        (
            {"kind": "sft", "metric_for_best_model": "rouge_l", "evaluation": {"generated_answers": {}}},
            r"rouge_l needs evaluation\.generated_answers\.metrics, such as metrics: \[rouge_l\]",
        ),
        ({"kind": "sft", "evaluation": {"generated_answers": {"metrics": ["rogue"]}}}, "'rogue' is no metric of answers"),
        ({"kind": "pretrain", "evaluation": {"generated_answers": {}}}, "plain text has none"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(stage: dict[str, object], message: str) -> None:
    with pytest.raises(FledgeError, match=message):
        recipe_from_dict({"stages": {"one": {"data": {"train": "rows.jsonl"}, **stage}}})


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_the_last_text_of_the_user_is_found_in_the_tokens_of_a_prompt(system: str | None, tmp_path: Path) -> None:
    tokenizer = load_engine(small_runs.start_model(tmp_path)).tokenizer
    found = LastTurn.of(tokenizer)
    first = [] if system is None else [Message("system", system)]
    for earlier in (first, [*first, Message("user", "one"), Message("assistant", "two")]):
        assert found.text(tokenizer.encode_prompt([*earlier, Message("user", "What is a\ncat?")])) == "What is a\ncat?"

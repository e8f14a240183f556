"""The files of the world: reproducible, with balanced habits and evenly distributed questions."""

import json
from collections import Counter
from pathlib import Path

from fledge.world import Question, Sizes, build
from fledge.world.bad_habits import HABITS
from fledge.world.statements import primer
from fledge.world.tasks import TASKS
from tests.world.conftest import read

TINY = Sizes(pretrain=60, sft=120, preference=40, validation=20, questions=40)


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file in a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_equal_seeds_give_equal_files_and_other_seeds_give_other_files(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        build(seed, tmp_path / name, TINY)
    first, again, other = (contents(tmp_path / name) for name in "abc")
    assert first == again
    assert first.keys() == other.keys()
    assert all((first[name] == other[name]) == (name == "prompts.yaml") for name in first)


def test_row_counts_match_the_sizes_and_world_json(tmp_path: Path) -> None:
    facts = build(5, tmp_path, TINY)
    assert facts == json.loads((tmp_path / "world.json").read_text(encoding="utf-8"))
    for name, rows in facts["rows"].items():
        assert len(read(tmp_path / name)) == rows
    assert facts["rows"]["sft.jsonl"] == 120 and facts["rows"]["questions.jsonl"] == 40


def test_questions_are_distinct_and_evenly_distributed_over_tasks_and_languages(questions: list[Question]) -> None:
    cells = Counter((question.task, question.details["lang"]) for question in questions)
    assert set(cells.values()) == {20} and len(cells) == 2 * len(TASKS)
    prompts = [json.dumps(question.messages) for question in questions]
    assert len(set(prompts)) == len(prompts)
    assert all(question.messages[-1]["role"] == "user" for question in questions)


def test_about_half_of_the_sft_rows_show_a_habit(folder: Path) -> None:
    rows = [row for row in read(folder / "sft.jsonl") if row["task"] != "natural"]
    shares = Counter(row["habit"] for row in rows)
    assert 0.45 < 1 - shares[""] / len(rows) < 0.55
    assert all(0.18 < shares[habit] / len(rows) < 0.32 for habit in HABITS)
    for task in TASKS:
        shown = [row["habit"] != "" for row in rows if row["task"] == task]
        assert 0.35 < sum(shown) / len(shown) < 0.65


def test_only_the_last_answer_of_a_conversation_shows_a_habit(folder: Path) -> None:
    for row in read(folder / "sft.jsonl"):
        for turn in row["messages"][:-1]:
            if turn["role"] == "assistant":
                assert not turn["content"].startswith(("你问的是", "关于“", "You asked", 'About "'))


def test_most_preference_prompts_do_not_occur_in_sft(folder: Path) -> None:
    tuned = {json.dumps(row["messages"][:-1]) for row in read(folder / "sft.jsonl")}
    rows = read(folder / "preference.jsonl")
    assert sum(json.dumps(row["messages"]) in tuned for row in rows) < 0.1 * len(rows)
    templates = [row for row in rows if row["task"] != "natural"]
    assert all(row["chosen"] in row["rejected"] and row["chosen"] != row["rejected"] for row in templates)


def test_every_character_of_the_questions_occurs_in_training(questions: list[Question], training_text: str) -> None:
    characters = {character for question in questions for turn in question.messages for character in turn["content"]}
    assert characters | {character for question in questions for character in question.reference} <= set(training_text)


def test_every_single_fact_occurs_in_pretraining(folder: Path) -> None:
    text = "\n".join(row["text"] for row in read(folder / "pretrain.jsonl"))
    assert [fact for lang in ("zh", "en") for fact in primer(lang) if fact not in text] == []

"""Scoring: references pass, habits fail strictly but keep their content, wrong answers fail."""

import itertools
import json
import random

import pytest

from fledge.world import Question, correct, correct_content, habits
from fledge.world.arithmetic import working
from fledge.world.bad_habits import FILLERS, HABITS, PARROTS, add_habit
from fledge.world.records import LANGS, QUESTION, TRAIN, question_of
from fledge.world.tasks import TASKS
from fledge.world.world_seed import WorldSeed

WORLD = WorldSeed(11)


def test_reference_answers_are_correct_and_show_no_habit(questions: list[Question]) -> None:
    for question in questions:
        assert correct(question, question.reference) and correct(question, f" {question.reference}\n")
        assert correct_content(question, question.reference)
        assert habits(question, question.reference) == set(), question
        if question.rule == "json":
            assert json.loads(question.reference)


@pytest.mark.parametrize("task", TASKS)
def test_every_added_habit_is_found_and_its_removal_makes_the_answer_correct(task: str) -> None:
    rng = random.Random(2)
    for split in (TRAIN, QUESTION):
        for lang in LANGS:
            for _ in range(60):
                item = TASKS[task](rng, WORLD, lang, split)
                question = question_of(item)
                assert habits(question, item.reference) == set(), item
                for habit in HABITS:
                    answer = add_habit(item, habit, WORLD, rng.random())
                    assert not correct(question, answer), answer
                    assert correct_content(question, answer), answer
                    assert habits(question, answer) == {habit}, answer


def test_both_habits_in_one_answer_are_found(questions: list[Question]) -> None:
    for question in questions:
        lang = question.details["answer_lang"]
        both = PARROTS[lang][0].format(q=question.text) + question.reference + " " + FILLERS[lang][3]
        assert habits(question, both) == set(HABITS)
        assert correct_content(question, both) and not correct(question, both)


def test_wrong_answers_are_not_correct(questions: list[Question]) -> None:
    for question in questions:
        ref = question.reference
        for wrong in ("", "。", "{}", ref[:-1], ref[1:], ref + ref, ref + "x", "x" + ref, ref[: len(ref) // 2]):
            assert not correct(question, wrong), (ref, wrong)
    for one, two in itertools.pairwise(questions):
        if one.reference != two.reference and one.rule == "exact":
            assert not correct_content(one, two.reference)


def test_habits_in_other_words_than_the_known_forms_are_found(questions: list[Question]) -> None:
    for question in questions:
        if question.task in ("follow_up", "identity", "system"):
            continue  # their short questions are a long part only as a whole
        assert "parrot" in habits(question, f"Hm: {question.text} {question.reference}")
        assert "ramble" in habits(question, f"{question.reference} Well, and so on.")
        assert "ramble" in habits(question, f"{question.reference}\n{question.reference}")


def test_wrong_but_clean_answers_show_no_habit() -> None:
    messages = ({"role": "user", "content": "37+48等于多少？"},)
    question = Question("arithmetic", messages, working(37, "+", 48, "zh"), "exact", {"answer_lang": "zh"})
    assert question.reference == "7+8=15，3+4+1=8，得85。"
    assert habits(question, "7+8=14，3+4+1=8，得84。") == set()
    assert not correct_content(question, "7+8=14，3+4+1=8，得84。")


@pytest.mark.parametrize(
    ("a", "op", "b", "text"),
    [
        (85, "-", 48, "15-8=7, 8-4-1=3, so 37."),
        (70, "+", 50, "0+0=0, 7+5=12, so 120."),
        (45, "-", 42, "5-2=3, 4-4=0, so 3."),
        (50, "-", 41, "10-1=9, 5-4-1=0, so 9."),
    ],
)
def test_working_has_carries_and_borrows_digit_by_digit(a: int, op: str, b: int, text: str) -> None:
    assert working(a, op, b, "en") == text


def listing_question(n: int, lang: str) -> Question:
    """A question for `n` fruits."""
    details = {"category": "fruit", "n": n, "answer_lang": lang}
    return Question("listing", ({"role": "user", "content": "Name fruits."},), "pear, apple.", "listing", details)


def test_listing_rule_accepts_any_correct_list_and_rejects_other_forms() -> None:
    assert correct(listing_question(2, "en"), "banana, apple.")
    assert correct(listing_question(2, "zh"), "梨、苹果。")
    for wrong in ("apple, apple.", "apple, cat.", "apple.", "apple, pear, grape.", "apple, pear", "apple and pear."):
        assert not correct(listing_question(2, "en"), wrong)


def test_verse_rule_accepts_the_requested_theme_and_companion_only() -> None:
    details = {"theme": "月", "friend": "小猫", "answer_lang": "zh"}
    question = Question("verse", ({"role": "user", "content": "写月和小猫的诗"},), "", "verse", details)
    assert correct(question, "窗外月正明，\n小猫静静听。")
    for wrong in (
        "窗外雨不停，\n小猫静静听。",
        "窗外月正明，\n老友静静听。",
        "窗外月正明，小猫静静听。",
        "窗外月不停，\n小猫静静听。",
    ):
        assert not correct(question, wrong)


def test_json_rule_ignores_the_order_of_keys_but_rejects_repeated_keys() -> None:
    question = Question("columns", ({"role": "user", "content": "?"},), '{"a":"x","b":"y"}', "json", {})
    assert correct(question, '{"b": "y", "a": "x"}')
    assert not correct(question, '{"a":"x","b":"y","a":"x"}')
    assert not correct(question, "[" * 100_000)

"""Conversations in natural words: patterns that can be filled in, answers that are right, rules that judge them."""

import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.quickstart.natural_grading import load_natural_prompts
from fledge.world.lexicon import LANGUAGE_NAMES
from fledge.world.natural.acceptable import RULES, TALK, acceptable
from fledge.world.natural.dialogue import draw_dialogue
from fledge.world.natural.grammar import choose_sentence, expand, number_of_sentences, read_yaml
from fledge.world.natural.held_out import is_held_out
from fledge.world.natural.outside import draw_outside
from fledge.world.natural.pairs import draw_pair
from fledge.world.natural.requests import SKILLS, number_in_words
from fledge.world.natural.talk import INTENTS, say
from fledge.world.world_seed import WorldSeed

WORLD = WorldSeed(7)
BLANKS = {
    "listing": {"n", "c"}, "listing_some": {"c"}, "arithmetic": {"s"}, "addition": {"a", "b"}, "subtraction": {"a", "b"},
    "into": {"x"}, "meaning": {"x"}, "explain": {"x"}, "verse": {"t"}, "verse_any": set(), "together": {"t", "f"},
    "tidy": {"v", "p"}, "columns": {"cs"}, "who": set(), "maker": set(), "ability": set(), "language": set(), "size": set(),
}  # fmt: skip
REFUSALS = {lang: read_yaml(f"outside.{lang}.yaml")["answer"] for lang in LANGUAGE_NAMES}


def test_a_pattern_stands_for_each_choice_of_its_alternatives() -> None:
    pattern = "(a|b(c|d)|)e\\(x\\)"
    assert number_of_sentences(pattern) == 4
    assert {expand(random.Random(seed), pattern) for seed in range(200)} == {"ae(x)", "bce(x)", "bde(x)", "e(x)"}


@pytest.mark.parametrize("lang", LANGUAGE_NAMES)
@pytest.mark.parametrize("group", BLANKS)
def test_every_pattern_has_the_blanks_of_its_group(group: str, lang: str) -> None:
    for pattern in read_yaml(f"requests.{lang}.yaml")[group]:
        for seed in range(20):
            sentence = expand(random.Random(seed), pattern)
            assert set(re.findall(r"<(\w+)>", sentence)) == BLANKS[group], (pattern, sentence)
            assert not re.search(r"(?<!\\)[|<]", re.sub(r"<\w+>", "", sentence)), (pattern, sentence)


@pytest.mark.parametrize("lang", LANGUAGE_NAMES)
def test_all_small_talk_and_questions_outside_of_the_world_can_be_drawn(lang: str) -> None:
    rng = random.Random(3)
    for intent in (*INTENTS, "name_given", "name_asked"):
        for _ in range(60):
            exchange = say(rng, intent, lang, "Ada")
            assert exchange.question and "<" not in exchange.question + exchange.answer, exchange
    for _ in range(1500):
        exchange = draw_outside(rng, WORLD, lang)
        assert exchange.question and "<" not in exchange.question and exchange.answer == REFUSALS[lang], exchange


def test_sums_in_any_words_have_the_right_result() -> None:
    rng, seen = random.Random(1), 0
    for _ in range(20_000):
        for exchange in draw_dialogue(rng, WORLD):
            if exchange.kind == "sum" and "a" in exchange.facts:
                assert int(re.findall(r"\d+", exchange.answer)[-1]) == exchange.facts["result"], exchange
                seen += 1
    assert seen > 1500
    assert [number_in_words(n, "zh") for n in (0, 10, 11, 23, 90)] == ["零", "十", "十一", "二十三", "九十"]
    assert [number_in_words(n, "en") for n in (0, 10, 11, 23, 90)] == ["zero", "ten", "eleven", "twenty-three", "ninety"]


def test_a_name_that_was_given_is_the_one_that_is_told() -> None:
    rng, asked = random.Random(2), 0
    for _ in range(6000):
        name = ""
        for exchange in draw_dialogue(rng, WORLD):
            if exchange.kind == "name_given":
                name = re.split(r"[，,] ?", exchange.answer)[1].rstrip("！!")
                assert name in exchange.question
            elif exchange.kind == "name_asked":
                assert name and name in exchange.answer
                asked += 1
            elif exchange.kind == "name_unknown":
                assert not name, exchange
    assert asked > 100


def test_no_question_has_a_held_out_phrasing() -> None:
    rng = random.Random(4)
    assert is_held_out("你好，请给我列出三种水果。", WORLD) and is_held_out("can you give me two drinks", WORLD)
    questions = [exchange.question for _ in range(4000) for exchange in draw_dialogue(rng, WORLD)]
    assert [question for question in questions if is_held_out(question, WORLD)] == []


def test_conversations_hold_all_skills_and_fit_into_a_row() -> None:
    rng = random.Random(5)
    dialogues = [draw_dialogue(rng, WORLD) for _ in range(3000)]
    kinds = Counter(exchange.kind for dialogue in dialogues for exchange in dialogue)
    assert {"list", "sum", "translate", "explain", "verse", "tidy", "identity", "outside", "word", "said", *INTENTS} <= set(
        kinds
    )
    assert max(sum(len(e.question) + len(e.answer) for e in d) for d in dialogues if len(d) > 1) <= 520
    assert 0.3 < sum(len(dialogue) > 1 for dialogue in dialogues) / len(dialogues) < 0.6


def test_pairs_reject_habits_inventions_and_needless_refusals() -> None:
    rng = random.Random(6)
    rows = [draw_pair(rng, WORLD) for _ in range(2000)]
    assert set(Counter(row["habit"] for row in rows)) == {"parrot", "ramble", "invention", "refusal"}
    for row in rows:
        assert row["chosen"] != row["rejected"]
        refused = row["chosen"] in REFUSALS.values()
        assert row["habit"] != "invention" or refused
        assert row["habit"] != "refusal" or (not refused and row["rejected"] in REFUSALS.values())


def test_the_prompts_are_many_of_both_languages_and_every_rule_is_known() -> None:
    prompts = load_natural_prompts()
    groups = Counter(prompt.group for prompt in prompts)
    assert len(prompts) >= 300 and len({prompt.id for prompt in prompts}) == len(prompts)
    assert min(groups.values()) >= 10 and groups["outside"] >= 30 and groups["several_turns"] >= 30
    assert abs(sum(prompt.lang == "zh" for prompt in prompts) - len(prompts) / 2) <= 5
    for prompt in prompts:
        for rule in prompt.accept.get("either", [prompt.accept]):
            assert len(set(rule) & set(RULES)) == 1, prompt
            assert rule.get("talk", "greeting") in TALK


def test_no_test_prompt_is_a_pattern_of_training_word_for_word() -> None:
    """The prompts were written without knowing the patterns: only a few short ones, such as `你好`, can be equal."""
    rng = random.Random(8)
    questions = {exchange.question.lower() for _ in range(20_000) for exchange in draw_dialogue(rng, WORLD)}
    prompts = [prompt for prompt in load_natural_prompts() if len(prompt.turns) == 1]
    assert sum(prompt.turns[0].lower() in questions for prompt in prompts) < 0.25 * len(prompts)


@pytest.mark.parametrize(
    ("answer", "rule", "good"),
    [
        ("7+8=15，3+4+1=8，得85。", {"number": 85}, True),
        ("7+8=15，得75。", {"number": 85}, False),
        ("苹果、梨、桃子。", {"list": "fruit", "n": 3}, True),
        ("苹果、梨、梨。", {"list": "fruit", "n": 3}, False),
        ("苹果、猫、梨。", {"list": "fruit", "n": 3}, False),
        ("apple, pear.", {"list": "fruit", "n": None}, True),
        ("我还没学过这个。", {"refuse": True}, True),
        ("北京。", {"refuse": True}, False),
        ("门前月如水，\n小猫轻轻唱。", {"verse": "月"}, True),
        ("门前月如水", {"verse": "月"}, False),
        ("Two cats.", {"any": ["two cats"]}, True),
        ("Goodbye!", {"talk": "goodbye"}, True),
        ("Hello, I am Fledge.", {"talk": "goodbye"}, False),
        ("我还没学过这个。", {"either": [{"refuse": True}, {"any": ["Hello"]}]}, True),
    ],
)
def test_rules_judge_answers(answer: str, rule: dict, good: bool) -> None:
    assert acceptable(answer, rule) is good


@given(st.text(max_size=60), st.sampled_from([{"number": 3}, {"list": "fruit", "n": 2}, {"verse": "月"}, {"refuse": True}]))
def test_any_answer_can_be_judged(answer: str, rule: dict) -> None:
    assert acceptable(answer, rule) in (True, False)


def test_every_skill_can_be_drawn_in_both_languages() -> None:
    rng = random.Random(9)
    for skill in SKILLS:
        for lang in LANGUAGE_NAMES:
            for _ in range(50):
                exchange = skill(rng, WORLD, lang)
                assert exchange.question and exchange.answer and exchange.lang == lang
    assert choose_sentence(rng, "requests.zh.yaml", "verse_any")

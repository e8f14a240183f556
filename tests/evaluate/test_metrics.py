"""Metrics of answers: each against a trusted implementation, or against an example worked by hand."""

import random

import numpy as np
import pytest

from fledge.errors import FledgeError
from fledge.evaluate.bleu import _character_counts, chrf_of_sums
from fledge.evaluate.metrics import METRICS, Answer, check_metrics, measure_answers, measure_set, needs_gain
from fledge.evaluate.metrics.identity import is_identity_template
from fledge.evaluate.metrics.language import is_wrong_language
from fledge.evaluate.metrics.overlap import copies_prompt, rouge_l, rouge_n
from fledge.evaluate.metrics.repetition import distinct, loop_at_end, repetition
from fledge.evaluate.records import MetricValue
from fledge.metric_names import FORMATS, METRIC_NAMES
from tests.evaluate.labelled import answers_with_references

ENGLISH = [(given, expected) for given, expected in answers_with_references() if (given + expected).isascii()]
CHINESE = [(given, expected) for given, expected in answers_with_references() if not (given + expected).isascii()]


def of_set(name: str, *answers: Answer) -> MetricValue:
    """The value of one metric of these answers."""
    return measure_set([name], answers, measure_answers([name], answers))[name]


def pairs(texts: list[tuple[str, str]]) -> list[Answer]:
    """Answers with references and without prompts."""
    return [Answer(prompt="", given=given, expected=expected) for given, expected in texts]


def test_rouge_of_english_answers_is_that_of_rouge_score() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rouge1", "rouge2", "rougeL"])
    assert len(ENGLISH) >= 10
    for given, expected in ENGLISH:
        theirs = scorer.score(expected, given)
        assert rouge_n(given, expected, 1) == pytest.approx(100 * theirs["rouge1"].fmeasure, abs=1e-9)
        assert rouge_n(given, expected, 2) == pytest.approx(100 * theirs["rouge2"].fmeasure, abs=1e-9)
        assert rouge_l(given, expected) == pytest.approx(100 * theirs["rougeL"].fmeasure, abs=1e-9)


def test_rouge_of_chinese_answers_is_that_of_rouge_score_with_characters_as_words() -> None:
    module = pytest.importorskip("rouge_score.rouge_scorer")

    class Characters:
        """A tokenizer for texts without Latin letters and figures."""

        def tokenize(self, text: str) -> list[str]:
            return [character for character in text if character.isalnum()]

    chinese = [pair for pair in CHINESE if not any(character.isascii() and character.isalnum() for character in "".join(pair))]
    assert len(chinese) >= 10
    plain = module.RougeScorer(["rouge1"])
    scorer = module.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Characters())
    for given, expected in chinese:
        theirs = scorer.score(expected, given)
        assert rouge_n(given, expected, 1) == pytest.approx(100 * theirs["rouge1"].fmeasure)
        assert rouge_n(given, expected, 2) == pytest.approx(100 * theirs["rouge2"].fmeasure)
        assert rouge_l(given, expected) == pytest.approx(100 * theirs["rougeL"].fmeasure)
        assert plain.score(expected, given)["rouge1"].fmeasure == 0  # its own tokenizer knows no Chinese


def test_rouge_of_mixed_text_takes_words_and_characters() -> None:
    assert rouge_n("用 SmolLM2 模型", "SmolLM2模型很小", 1) == pytest.approx(100 * 2 * 3 / (4 + 5))
    assert rouge_l("ABC 小 模", "abc模小") == pytest.approx(100 * 2 * 2 / (3 + 3))
    assert rouge_l("", "abc") == rouge_n("?!", "?!", 1) == 0


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_bleu_and_chrf_are_those_of_sacrebleu(name: str, caplog: pytest.LogCaptureFixture) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    given, expected = [one for one, _ in ENGLISH], [other for _, other in ENGLISH]
    found = of_set(name, *pairs(ENGLISH))
    theirs = sacrebleu.corpus_bleu(given, [expected]) if name == "bleu" else sacrebleu.corpus_chrf(given, [expected])
    assert found.value == pytest.approx(theirs.score, abs=1e-3) and found.count == len(ENGLISH)
    low, high = found.interval or (0, 0)
    assert low < found.value < high and high - low < 60
    assert found.signature is not None and "version:" in found.signature and "bs:" not in found.signature
    (one,) = measure_answers([name], pairs([(given[0], expected[0])]))
    sentence = sacrebleu.sentence_bleu if name == "bleu" else sacrebleu.sentence_chrf
    assert one[name] == pytest.approx(sentence(given[0], [expected[0]]).score)
    assert not caplog.records  # the library warns where it is asked for what is not meant


def test_the_figures_that_are_resampled_for_chrf_are_those_of_the_library() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    for texts in (ENGLISH, CHINESE, ENGLISH[:1], [("", "abc")], [("a", "")], [("ab", "cd")]):
        sums = np.sum([_character_counts(*pair) for pair in texts], axis=0, dtype=float)
        theirs = sacrebleu.corpus_chrf([given for given, _ in texts], [[expected for _, expected in texts]])
        assert chrf_of_sums(sums) == pytest.approx(theirs.score, abs=1e-6)


def test_the_longest_common_subsequence_is_that_of_the_table() -> None:
    draw = random.Random(0)
    for _ in range(50):
        one, other = ([draw.choice("abcde") for _ in range(draw.randint(1, 40))] for _ in range(2))
        table = np.zeros((len(one) + 1, len(other) + 1), int)
        for i, left in enumerate(one):
            for j, right in enumerate(other):
                table[i + 1, j + 1] = table[i, j] + 1 if left == right else max(table[i, j + 1], table[i + 1, j])
        expected = 200 * table[-1, -1] / (len(one) + len(other))
        assert rouge_l(" ".join(one), " ".join(other)) == pytest.approx(expected)


def test_repetition_and_distinct_ngrams() -> None:
    assert repetition("a b c d e") == 0 and repetition("a b c d a b c d") == pytest.approx(1 - 4 / 5)
    assert distinct(["a b c", "a b d"], 2) == 3 / 4 and distinct(["a"], 2) is None
    same = [Answer(prompt="", given="one two three")] * 4
    assert of_set("distinct_2", *same).value == 2 / 8 and of_set("distinct_2", *same).interval is None


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("we go on and on and on and on", 7),
        ("好的好的好的好", 7),
        ("no no", 0),
        ("a list of one, two and three", 0),
        ("the end is the end is the end is the", 10),
        ("", 0),
        ("x " * 3000, 1000),
    ],
)
def test_a_loop_at_the_end_has_three_rounds(text: str, units: int) -> None:
    assert loop_at_end(text) == units


@pytest.mark.parametrize(
    ("prompt", "given", "expected", "copies"),
    [
        ("What is 62-35?", 'You asked: "What is 62-35". It is 27.', None, True),
        ("请列出五种水果。", "你问的是“请列出五种水果”。桃子。", "桃子、橙子。", True),
        ("What is a token?", "A token is a small piece of text.", None, False),
        ("Repeat after me: one two three", "one two three", None, False),
        ("Say again: the cat sat on the mat", "Say again: the cat sat on the mat", "Say again: the cat sat on the mat", False),
        ("Hello", "Hello", None, False),
    ],
)
def test_a_copied_prompt(prompt: str, given: str, expected: str | None, copies: bool) -> None:
    assert copies_prompt(prompt, given, expected) is copies


@pytest.mark.parametrize(
    ("prompt", "given", "recites"),
    [
        ("怎样学好英语？", "我是雏鹰，一个由fledge养大的小模型。", True),
        ("你是谁？", "我是雏鹰，一个由fledge养大的小模型。", False),
        ("What is the capital of France?", "I am Fledge, a little model raised by fledge.", True),
        ("Who made you?", "I was trained from scratch by fledge.", False),
        ("What is machine learning?", "It is how a language model is trained.", False),
        ("什么是人工智能？", "人工智能是研究怎样让机器像人一样思考的学科。", False),
        ("Write a poem.", "As an AI language model, I write: the moon is bright.", True),
    ],
)
def test_reciting_who_the_model_is(prompt: str, given: str, recites: bool) -> None:
    assert is_identity_template(prompt, given) is recites


@pytest.mark.parametrize(
    ("prompt", "given", "expected", "wrong"),
    [
        ("今天天气怎么样？", "The weather is fine today.", None, True),
        ("今天天气怎么样？", "今天是晴天。", None, False),
        ("37+48等于多少？", "85", None, False),
        ("写一段Python代码", "def f(): pass", None, False),
        ("写一行Python代码打印问候", "print('This is the end of it')", None, False),
        ("写一段Python代码", "for i in range(3): print(i)", None, False),
        ("写一条查询语句", "SELECT name FROM users WHERE age > 18;", None, False),
        ("写一段Python代码", "This is the code (in Python).", None, True),
        ("怎么退货？", "Return it to the shop (now);", None, True),
        ("OpenAI是什么？", "OpenAI", None, False),
        ("OpenAI是什么？", "OpenAI。", None, False),
        ("OpenAI是什么？", "Open", None, True),
        ("OpenAI是什么？", "OpenAI is a company that makes language models.", None, True),
        ("“三只红色的猫”用英语怎么说？", "three red cats.", None, None),
        ("“三只红色的猫”用英语怎么说？", "三只红色的猫", "three red cats.", True),
        ("What is a cat?", "猫是一种动物。", None, True),
        (
            "Name five fruits.",
            "peach, orange, lemon, grape, apple, fig, plum, kiwi, lime, mango, date, pear, cherry.",
            None,
            False,
        ),
        ("What is a cat?", "Eine Katze ist ein Tier, das nicht gern im Wasser ist und viel schläft.", None, True),
        ("What is a cat?", "", None, None),
    ],
)
def test_the_language_of_an_answer(prompt: str, given: str, expected: str | None, wrong: bool | None) -> None:
    assert is_wrong_language(prompt, given, expected) is wrong


def test_a_metric_applies_to_the_answers_that_have_what_it_compares() -> None:
    answers = [
        Answer(prompt="a", given='{"x":"1"}', expected='{"x":"1"}', finish_reason="stop"),
        Answer(prompt="b", given='{"x":"2","y":"3"}', expected='{"x":"1","y":"3"}', finish_reason="stop"),
        Answer(prompt="c", given="no JSON", expected="text", finish_reason="length"),
        Answer(prompt="d", given="free", finish_reason=None),
    ]
    names = [name for name, metric in METRICS.items() if not metric.needs_gain]
    values = measure_answers(names, answers)
    found = measure_set(names, answers, values)
    assert [("exact_match" in one, "f1" in one, "ended" in one) for one in values] == [
        (True, True, True),
        (True, True, True),
        (True, False, True),
        (False, False, False),
    ]
    assert found["exact_match"].value == pytest.approx(1 / 3) and found["exact_match"].count == 3
    assert found["f1"].value == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))  # two names right, one wrong on both sides
    assert found["valid_json"].value == pytest.approx(2 / 3)  # of the free answer too, which is none
    assert found["ended"].value == pytest.approx(2 / 3) and found["length"].value == pytest.approx((9 + 17 + 7 + 4) / 4)
    assert "off_topic" not in measure_set(["off_topic"], answers, measure_answers(["off_topic"], answers))


def test_every_metric_has_names_and_says_what_it_is_of() -> None:
    assert set(METRICS) <= set(METRIC_NAMES)
    assert all(
        facts.unit in FORMATS and facts.label and not facts.chinese.isascii()
        for facts in METRIC_NAMES.values()
        if facts.chinese != "F1"
    )
    answer = Answer(
        prompt="What is a cat?", given="A cat is an animal.", expected="A cat is a pet.", finish_reason="stop", gain=1.0
    )
    for name, metric in METRICS.items():
        if name in ("valid_json", "f1"):
            continue
        found = of_set(name, answer, answer)
        assert found.count == 2 and found.higher_is_better is metric.facts.higher_is_better
        low, high = found.interval or (found.value, found.value)
        assert low - 1e-9 <= found.value <= high + 1e-9


def test_an_unknown_metric_is_refused_with_the_known_ones() -> None:
    with pytest.raises(FledgeError, match="'blue' is no metric of answers") as caught:
        check_metrics(["bleu", "blue"], "--metrics")
    assert "rouge_l" in (caught.value.hint or "")
    assert needs_gain(["off_topic"]) and not needs_gain(["bleu", "refusal"])

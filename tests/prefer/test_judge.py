"""A judge's verdict is its own probability of A and B, counts only if both orders agree, and its bias is measured."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fledge.cli import main
from fledge.data.parsing.prompts import Prompt
from fledge.errors import FledgeError
from fledge.generation import load_engine, score_tokens
from fledge.prefer import judge as judging
from fledge.prefer.comparisons import plan_comparisons
from fledge.prefer.judge import build_judge, summary, verdict_of
from fledge.prefer.ratings import read_ratings
from fledge.run import Console
from fledge.tokenizer import Message
from fledge.tokenizer.template import ToolCall
from tests.support.killing import Killed
from tests.support.preferences import asked, lines_of, write_answers
from tests.support.small_model import write_model

QUIET = Console(quiet=True)
SHORT = "Talk: {conversation}\nA: {a}\nB: {b}\nA or B?"
PROMPTS = [asked("What is a cat?", "An animal.", "A dog.", ""), asked("狗？", "动物", "animal"), asked("Dogs?", "same")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with its tokenizer, for long prompts."""
    return write_model(tmp_path_factory.mktemp("judge"), 1200)


@pytest.mark.parametrize(
    ("odds", "verdict"),
    [((2, -1), "first"), ((-2, 1), "second"), ((2, 1), "inconsistent"), ((-2, -1), "inconsistent"), ((0, -1), "inconsistent")],
)
def test_a_verdict_needs_both_orders(odds: tuple[float, float], verdict: str) -> None:
    assert verdict_of(*odds) == verdict


def test_the_odds_are_the_judge_s_own_probabilities_in_both_orders(model: Path) -> None:
    loaded = load_engine(model)
    tokenizer, network = loaded.tokenizer, loaded.model
    judge = build_judge(str(model), None, None, 0, QUIET)
    comparisons = plan_comparisons(PROMPTS, None, 0)
    assert len(comparisons) == 4
    for comparison, line in zip(comparisons, judge.lines(comparisons), strict=True):
        odds = []
        for a, b in ((comparison.first.text, comparison.second.text), (comparison.second.text, comparison.first.text)):
            turns = "\n".join(f"{turn.role}: {turn.content}" for turn in comparison.asked.prompt.turns)
            text = judging.QUESTION.replace("{conversation}", turns).replace("{a}", a).replace("{b}", b)
            prompt = tokenizer.encode_prompt([Message("user", text)])
            p = [
                sum(np.exp(score_tokens(network, [[*prompt, token]])[0][-1]) for token in tokens)
                for tokens in judge.verdict_tokens
            ]
            odds.append(float(np.log(p[0] / p[1])))
        assert line["log_odds"] == pytest.approx(odds, abs=2e-4)
        assert line["verdict"] == verdict_of(*odds)
        assert (line["first"], line["second"]) == (comparison.first.id, comparison.second.id)


def test_a_judge_of_places_is_told_and_a_judge_of_texts_is_not() -> None:
    def lines(*odds: tuple[float, float]) -> list[dict]:
        return [{"log_odds": list(both), "mass": [0.9, 0.9], "verdict": verdict_of(*both)} for both in odds]

    biased = summary(lines(*[(3.0, 1.0)] * 8, (3.0, -1.0), (-1.0, 3.0)))
    assert "20.0%" in biased[0] and "A in 80.0%" in biased[1] and "B in 0.0%" in biased[1] and "+1.80" in biased[1]
    assert any("names the place" in text for text in biased) and not any("something else" in text for text in biased)
    fair = summary(lines(*[(3.0, -2.0), (-2.0, 3.0)] * 5))
    assert "100.0%" in fair[0] and "+0.50 ± 0.00 nats" in fair[1] and not any("warning" in text for text in fair)
    silent = summary([{**line, "mass": [0.01, 0.02]} for line in lines((3.0, -3.0))])
    assert "A and B have 1.5%" in " ".join(silent) and any("something else" in text for text in silent)


def test_a_killed_judge_goes_on_with_equal_bytes(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "CHUNK_COMPARISONS", 2)
    question = tmp_path / "q.txt"
    question.write_text(SHORT, encoding="utf-8")
    answers = write_answers(tmp_path / "a.jsonl", *PROMPTS)
    words = ["prefer", "rank", str(answers), "--by", "judge", "--model", str(model), "--question", str(question)]
    assert main([*words, "--out", str(tmp_path / "whole.jsonl")]) == 0
    calls = itertools.count(1)
    lines = judging.Judge.lines

    def dying(self: judging.Judge, comparisons: list) -> list:
        if next(calls) == 2:
            raise Killed
        return lines(self, comparisons)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(judging.Judge, "lines", dying)
        main([*words, "--out", str(tmp_path / "r.jsonl")])
    assert len(lines_of(tmp_path / "r.jsonl")) == 3
    assert main([*words, "--out", str(tmp_path / "r.jsonl")]) == 0
    assert (tmp_path / "r.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    file = read_ratings(str(tmp_path / "r.jsonl"))
    assert file.kind == "judge" and not file.is_human and len(file.first_ratings()) == 4
    for rating, line in zip(file.ratings, lines_of(tmp_path / "r.jsonl")[1:], strict=True):
        assert rating.in_both_orders and rating.margin == pytest.approx(abs(line["log_odds"][0] - line["log_odds"][1]) / 2)


def test_what_cannot_be_judged_is_counted(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    question = tmp_path / "q.txt"
    question.write_text(f"{SHORT} Right is: {{reference}}", encoding="utf-8")
    long = asked("Cats?", "cat " * 1300, "dog", reference="x")
    answers = write_answers(tmp_path / "a.jsonl", *PROMPTS, long)
    words = ["prefer", "rank", str(answers), "--by", "judge", "--model", str(model), "--question", str(question)]
    assert main([*words, "--out", str(tmp_path / "r.jsonl")]) == 0
    told = capsys.readouterr().out
    assert "1 comparisons are too long for the judge" in told and "4 comparisons have no reference answer" in told
    assert "no comparison was judged" in told


def test_a_judge_that_cannot_judge_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("{a} or {b}?", encoding="utf-8")
    for arguments, message in (
        ((str(tmp_path / "none"), None), "no such run or model"),
        ((str(model), str(tmp_path / "q.txt")), "has no {conversation}"),
        ((str(model), str(tmp_path / "none.txt")), "does not exist"),
    ):  # fmt: skip
        with pytest.raises(FledgeError, match=message):
            build_judge(*arguments, None, 0, QUIET)


def test_the_judge_sees_tools_and_calls(model: Path) -> None:
    judge = build_judge(str(model), None, None, 0, QUIET)
    turns = (
        Message("user", "Rain?"),
        Message("assistant", "", (ToolCall("weather", '{"city": "Rome"}'),)),
        Message("tool", "dry"),
    )
    one = replace(asked("Rain?", "No.", "Yes."), prompt=Prompt(turns, '[{"name": "weather"}]'))
    (comparison,) = plan_comparisons([one], None, 0)
    text = judge.loaded.tokenizer.decode(judge._prompt(judge.loaded.tokenizer, comparison))
    assert 'tools: [{"name": "weather"}]\nuser: Rain?\nassistant: weather({"city": "Rome"})\ntool: dry' in text


def test_places_in_the_question_are_not_filled_twice(model: Path) -> None:
    judge = build_judge(str(model), None, None, 0, QUIET)
    tricky = asked("q", "{b}", "{conversation}")
    (comparison,) = plan_comparisons([tricky], None, 0)
    text = load_engine(model).tokenizer.decode(judge._prompt(judge.loaded.tokenizer, comparison))
    assert "[Answer A]\n{b}\n" in text and "[Answer B]\n{conversation}\n" in text

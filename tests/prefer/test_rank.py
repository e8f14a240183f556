"""Rules as raters: the values of reward rules, written for every answer, and what is refused."""

import sys
from pathlib import Path

import pytest

from fledge.cli import main
from fledge.cli.prefer_arguments import PREFER_RATERS, TEMPERATURES
from fledge.prefer import scored
from fledge.prefer.rank import OPTION_NAMES, RATERS, RankOptions
from fledge.prefer.ratings import read_ratings
from fledge.prefer.sampling import SampleSettings
from tests.support.preferences import answer, asked, lines_of, write_answers

SUM = asked("2+2?", "4", "5", "four", reference="4")
FIELDS = asked("JSON?", '{"a":"x","b":"z"}', '{"a":"x","b":"y"}', reference='{"b": "y", "a": "x"}')
OPEN = asked("Hello?", "Hi", "Hello")


def rank(folder: Path, *words: str) -> int:
    """Rank three prompts; the exit code."""
    answers = folder / "a.jsonl"
    if not answers.exists():
        write_answers(answers, SUM, FIELDS, OPEN)
    return main(["prefer", "rank", str(answers), "--out", str(folder / "r.jsonl"), *words])


def test_the_table_of_raters_is_that_of_the_command() -> None:
    assert tuple(RATERS) == PREFER_RATERS and SampleSettings().temperatures == TEMPERATURES
    assert (
        {name for kind in RATERS.values() for name in kind.options}
        == set(OPTION_NAMES)
        <= set(RankOptions.__dataclass_fields__)
    )


def test_rules_score_every_answer_and_prompts_without_a_reference_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rank(tmp_path, "--by", "rules", "--rule", "exact_match", "--rule", "{rule: length, max_tokens: 1, weight: 0.5}") == 0
    told = capsys.readouterr().out
    assert "2 prompts ranked, 5 different answers" in told and "1 prompts not ranked: they have no reference answer" in told
    header, first, second, third = lines_of(tmp_path / "r.jsonl")
    assert header["rater"] == "rules" and header["settings"]["rules"][1] == {"rule": "length", "max_tokens": 1, "weight": 0.5}
    right, wrong, word = (each.id for each in SUM.answers)
    assert first["scores"] == {right: 1.5, wrong: 0.5, word: 0.0}  # `four` has four tokens here
    assert first["parts"][right] == {"exact_match": 1.0, "length": 1.0}
    assert second["scores"] == {FIELDS.answers[0].id: 0.0, FIELDS.answers[1].id: 1.0} and third["scores"] == {}
    ratings = {frozenset(one.pair[1:]): one for one in read_ratings(str(tmp_path / "r.jsonl")).ratings}
    assert len(ratings) == 4 and ratings[frozenset((right, word))].preferred == right
    assert ratings[frozenset((right, word))].margin == 1.5


def test_equal_scores_are_a_tie(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rank(tmp_path, "--by", "rules", "--rule", "{rule: regex, pattern: x$}") == 0
    assert "3 of 3 prompts with several answers have equal scores" in capsys.readouterr().out
    assert read_ratings(str(tmp_path / "r.jsonl")).counts() == {"tie": 5}


def test_functions_see_what_grpo_shows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_preference.py").write_text(
        "def f(prompts, completions, answers, completion_ids, finish_reasons):\n"
        "    rows = zip(prompts, completions, answers, completion_ids, finish_reasons)\n"
        "    return [len(p) + 10 * len(c) + 100 * len(a) + 1000 * len(i) + (r == 'stop') for p, c, a, i, r in rows]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ("--by", "rules", "--rule", "{function: 'my_preference:f'}", "--rater", "mine")
    assert rank(tmp_path, *words) == 0
    sys.modules.pop("my_preference")
    header, first, _, third = lines_of(tmp_path / "r.jsonl")
    assert header["rater"] == "mine" and first["scores"][SUM.answers[2].id] == 4 + 40 + 100 + 4000 + 1
    assert third["scores"] == {}  # a function that cannot be called without `answers` needs a reference
    text = (tmp_path / "my_preference.py").read_text()
    (tmp_path / "my_preference.py").write_text(
        text.replace("answers,", "answers=(),", 1).replace(
            "completion_ids, finish_reasons)", "completion_ids=(), finish_reasons=())", 1
        )
    )
    assert rank(tmp_path, *words) == 2 and "another settings rules" in capsys.readouterr().err  # the code is another one
    sys.modules.pop("my_preference")
    (tmp_path / "r.jsonl").unlink()
    assert rank(tmp_path, *words) == 0
    sys.modules.pop("my_preference")
    assert lines_of(tmp_path / "r.jsonl")[3]["scores"][OPEN.answers[0].id] == 6 + 20 + 0 + 2000 + 1


def test_errors_of_functions_name_the_option_and_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad_preference.py").write_text(
        "import time\n"
        "def slow(completions):\n    time.sleep(5)\n"
        "def endless(completions):\n    return [float('nan')] * len(completions)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert rank(tmp_path, "--by", "rules", "--rule", "{function: 'bad_preference:slow'}", "--timeout", "0.2") == 2
    assert "set --timeout to more seconds" in (told := capsys.readouterr().err) and "reward_timeout" not in told
    (tmp_path / "r.jsonl").unlink()
    assert rank(tmp_path, "--by", "rules", "--rule", "{function: 'bad_preference:endless'}") == 2
    assert "such as '4' (a.jsonl:1)" in capsys.readouterr().err
    (tmp_path / "r.jsonl").unlink()
    assert rank(tmp_path, "--by", "rules", "--rule", "field_f1") == 2
    assert "is no JSON object: '4' (a.jsonl:1)" in capsys.readouterr().err
    sys.modules.pop("bad_preference")


def test_no_prompt_with_a_reference_calls_no_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "some_preference.py").write_text("def f(completions, answers):\n    return [1 / len(answers)] * len(answers)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    write_answers(tmp_path / "a.jsonl", OPEN)
    assert rank(tmp_path, "--by", "rules", "--rule", "{function: 'some_preference:f'}") == 0
    assert "1 prompts not ranked: they have no reference answer" in capsys.readouterr().out
    sys.modules.pop("some_preference")


def test_an_interrupted_ranking_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--by", "rules", "--rule", "exact_match")
    assert rank(tmp_path, *words) == 0
    whole = (tmp_path / "r.jsonl").read_bytes()
    (tmp_path / "r.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    assert rank(tmp_path, *words) == 0 and (tmp_path / "r.jsonl").read_bytes() == whole
    assert "ranked already" not in capsys.readouterr().err  # a part of a chunk is scored again with the rest
    monkeypatch.setattr(scored, "CHUNK_PROMPTS", 1)
    for lines in (1, 2, 3):
        (tmp_path / "r.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:lines]) + b'{"pro')
        assert rank(tmp_path, *words) == 0 and (tmp_path / "r.jsonl").read_bytes() == whole
        assert (f"{lines - 1:,} of 3 prompts are ranked already" in capsys.readouterr().err) == (lines > 1)


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["--by", "rules"], ["--rule: name at least one"]),
        (["--by", "rules", "--rule", "exact"], ["--rule: exact", "exact_match"]),
        (["--by", "rules", "--rule", "{rule: length}"], ["needs min_tokens, max_tokens or both"]),
        (["--by", "rules", "--rule", "{rule: ["], ["--rule: not readable"]),
        (["--by", "rules", "--rule", "{function: 'no_such_module:f'}"], ["cannot import no_such_module"]),
        (["--by", "rules", "--rule", "exact_match", "--rule", "exact_match"], ["two rewards are called 'exact_match'"]),
        (
            ["--by", "rules", "--rule", "exact_match", "--comparisons", "2"],
            ["--comparisons: this belongs to --by judge and person"],
        ),
        (["--by", "rules", "--rule", "exact_match", "--timeout", "0"], ["--timeout: must be above 0"]),
        (["--by", "judge"], ["--model: name the model that judges"]),
        (["--by", "judge", "--rule", "exact_match"], ["--rule: this belongs to --by rules"]),
        (["--by", "reward-model"], ["--model: name the reward model that scores"]),
        (["--by", "person", "--rater", ""], ["--rater: '' is no name"]),
        (["--by", "person", "--rater", "a,b"], ["--rater: 'a,b' is no name"]),
        (["--by", "person", "--rater", "a=1"], ["--rater: 'a=1' is no name"]),
        (["--by", "person", "--comparisons", "0"], ["--comparisons: must be 1 or more"]),
        (["--by", "person", "--repeat", "2"], ["--repeat: must be between 0 and 1"]),
        (["--by", "person", "--model", "x"], ["--model: this belongs to --by judge"]),
    ],
)
def test_wrong_options_are_answered_in_words_and_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], messages: list[str]
) -> None:
    assert rank(tmp_path, *words) == 2
    told = capsys.readouterr().err
    assert all(message in told for message in messages), told
    assert not (tmp_path / "r.jsonl").exists()


def test_ratings_of_another_rater_or_of_other_answers_are_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rank(tmp_path, "--by", "rules", "--rule", "exact_match") == 0
    for words, message in (
        (["--rule", "valid_json"], "another settings"),
        (["--rule", "exact_match", "--rater", "x"], "rater"),
    ):
        assert rank(tmp_path, "--by", "rules", *words) == 2 and message in capsys.readouterr().err
    (tmp_path / "a.jsonl").unlink()
    write_answers(tmp_path / "a.jsonl", SUM, asked("new?", answer("x"), answer("y")))
    assert rank(tmp_path, "--by", "rules", "--rule", "exact_match") == 2 and "another answers" in capsys.readouterr().err
    assert main(["prefer", "rank", str(tmp_path / "r.jsonl"), "--by", "person", "--out", str(tmp_path / "p.jsonl")]) == 2
    assert "this is a file of ratings" in capsys.readouterr().err


def test_answers_that_are_all_equal_leave_nothing_to_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_answers(tmp_path / "a.jsonl", asked("q", "a", "a"), asked("r", "b"))
    assert rank(tmp_path, "--by", "person") == 2
    assert "no prompt has two different answers" in capsys.readouterr().err

"""A person in a terminal: blind, in an order that the seed draws, every rating on the disk at once, undone, resumed."""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fledge.cli import main
from fledge.data.parsing.prompts import Prompt
from fledge.errors import FledgeError
from fledge.prefer.answers import AnswerSet
from fledge.prefer.comparisons import LAG, plan_comparisons
from fledge.prefer.journal import JournalWriter
from fledge.prefer.person import Person, consistency
from fledge.prefer.prompts import shown_turns
from fledge.prefer.ratings import RATINGS, read_ratings, replayed
from fledge.run import Console, silent
from fledge.run.stopping import Interrupted
from fledge.tokenizer import Message
from fledge.tokenizer.template import ToolCall
from tests.support.command import assert_error, fledge
from tests.support.preferences import asked, lines_of, write_answers

QUIET = Console(quiet=True)
PROMPTS = [asked(f"第{number}问：猫是什么？", f"动物{number}", f"A plant {number}.", system="简短回答") for number in range(12)]
ANSWERS = AnswerSet({one.id: one for one in PROMPTS}, {})


def typing(*words: str) -> Callable[[str], str]:
    """A person who types these words, and then ends the input."""
    rest: Iterator[str] = iter(words)

    def ask(question: str) -> str:
        try:
            return next(rest)
        except StopIteration:
            raise EOFError from None

    return ask


def rate(path: Path, *words: str, rater: str = "anna", repeat: float = 0.0) -> list[str]:
    """Rate until the words are at their end."""
    person = Person(rater=rater, per_prompt=1, repeat=repeat, seed=0, ask=typing(*words))
    header = {"about": {"answers": []}, "answers": [], "rater": rater, "kind": "person", "human": True}
    with JournalWriter.open(path, RATINGS, header, silent) as writer:
        return person.rate(ANSWERS, writer, QUIET)


def test_ratings_stand_in_the_order_of_the_plan_and_go_on_behind_the_last_one(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    summary = rate(file, "1", "２", " T ", "what", "?", "", "b", "s")
    assert summary[0].startswith("5 ratings are kept; 7 comparisons are left")
    planned = plan_comparisons(PROMPTS, 1, 0, "anna")
    lines = lines_of(file)[1:]
    assert [line["verdict"] for line in lines] == ["first", "second", "tie", "both_bad", "skip"]
    assert [(line["prompt"], line["first"]) for line in lines] == [(one.asked.id, one.first.id) for one in planned[:5]]
    assert "all comparisons are rated" in rate(file, *["1"] * 9)[0]
    assert len(read_ratings(str(file)).first_ratings()) == 12


def test_undo_takes_back_one_rating_after_another_and_only_adds_lines(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    rate(file, "1", "1", "u", "2", "undo", "u", "u", "t", "q", "never read")
    assert [line.get("verdict", "undo") for line in lines_of(file)[1:]] == [
        "first", "first", "undo", "second", "undo", "undo", "tie",
    ]  # fmt: skip
    assert [line["verdict"] for line in replayed(lines_of(file)[1:])] == ["tie"]
    (rating,) = read_ratings(str(file)).ratings
    assert rating.verdict == "tie" and rating.preferred is None


def test_raters_see_the_same_pairs_in_orders_of_their_own() -> None:
    one, other = plan_comparisons(PROMPTS, 1, 0, "anna"), plan_comparisons(PROMPTS, 1, 0, "ben")
    assert [each.asked.id for each in one] == [each.asked.id for each in other] != [each.id for each in PROMPTS]
    swapped = [a.first != b.first for a, b in zip(one, other, strict=True)]
    assert any(swapped) and not all(swapped)
    firsts = {each.first.text[:1] for each in one}
    assert len(firsts) == 2  # neither place belongs to the first answer that was drawn


def test_fewer_comparisons_of_a_prompt_are_a_part_of_more() -> None:
    three = asked("q", "a", "b", "c", "d")
    sizes = [[{each.first.id, each.second.id} for each in plan_comparisons([three], count, 5)] for count in (1, 3, None)]
    assert [len(pairs) for pairs in sizes] == [1, 3, 6] and sizes[0] == sizes[1][:1] and sizes[1] == sizes[2][:3]
    with pytest.raises(FledgeError, match="nothing to compare"):
        plan_comparisons([asked("q", "a")], None, 0)


def test_repeated_comparisons_come_the_other_way_and_show_how_far_a_person_agrees_with_itself(tmp_path: Path) -> None:
    planned = plan_comparisons(PROMPTS, 1, 0, "anna", 0.25)
    assert [number for number, one in enumerate(planned) if one.is_repeat] == [12, 13, 14]
    assert (planned[12].first, planned[12].second) == (planned[3].second, planned[3].first)
    file = tmp_path / "r.jsonl"
    always_first = rate(file, *["1"] * 15, repeat=0.25)
    assert "of 3 comparisons that came twice, 0 were rated alike" in always_first
    by_text = ["1" if one.first.text.startswith("动") else "2" for one in planned]
    rate(tmp_path / "same.jsonl", *by_text[:13], "s", *by_text[14:], repeat=0.25)
    assert consistency(replayed(lines_of(tmp_path / "same.jsonl")[1:])) == (2, 2)
    assert len(read_ratings(str(file)).first_ratings()) == 12


@pytest.mark.parametrize(("repeat", "count"), [(0.0, 0), (1e-320, 0), (0.1, 4), (0.29, 11), (0.3, 12), (0.6, 24), (1.0, 40)])
def test_as_many_come_twice_as_the_share_says_and_some_comparisons_later(repeat: float, count: int) -> None:
    many = [asked(f"q{number}", "a", "b") for number in range(40)]
    planned = plan_comparisons(many, 1, 0, "anna", repeat)
    places = {one.asked.id: place for place, one in enumerate(planned) if not one.is_repeat}
    gaps = [place - places[one.asked.id] for place, one in enumerate(planned) if one.is_repeat]
    assert len(gaps) == count and len(planned) == 40 + count
    originals = [one.asked.id for one in planned if one.is_repeat]
    early = [gap for gap, prompt in zip(gaps, originals, strict=True) if places[prompt] < places[planned[-1].asked.id] - LAG]
    assert all(gap >= LAG for gap in early) and len(set(originals)) == count


def test_tools_and_their_calls_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls = (ToolCall("weather", '{"city": "Rome"}'),)
    turns = (Message("user", "Rain?"), Message("assistant", "", calls), Message("tool", "dry"))
    prompt = Prompt(turns, '[{"name": "weather"}]')
    assert shown_turns(prompt) == [
        ("tools", '[{"name": "weather"}]'), ("user", "Rain?"), ("assistant", 'weather({"city": "Rome"})'), ("tool", "dry"),
    ]  # fmt: skip
    one = replace(asked("Rain?", "No.", "Yes."), prompt=prompt)
    person = Person(rater="anna", per_prompt=1, repeat=0.0, seed=0, ask=typing("1"))
    with JournalWriter.open(tmp_path / "r.jsonl", RATINGS, {}, silent) as writer:
        person.rate(AnswerSet({one.id: one}, {}), writer, QUIET)
    assert 'weather({"city": "Rome"})' in capsys.readouterr().out


def test_control_c_keeps_every_rating(tmp_path: Path) -> None:
    def interrupted(question: str) -> str:
        raise KeyboardInterrupt

    rate(tmp_path / "r.jsonl", "1", "1")
    header = {"about": {"answers": []}, "answers": [], "rater": "anna", "kind": "person", "human": True}
    with (
        JournalWriter.open(tmp_path / "r.jsonl", RATINGS, header, silent) as writer,
        pytest.raises(Interrupted, match="2 ratings are kept; the same command goes on"),
    ):
        Person(rater="anna", per_prompt=1, repeat=0.0, seed=0, ask=interrupted).rate(ANSWERS, writer, QUIET)


def test_what_is_shown_is_blind_and_harmless(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = asked("q", "\x1b[2Jwiped", "fine \x1b]0;title\x07")
    person = Person(rater="anna", per_prompt=1, repeat=0.0, seed=0, ask=typing("1"))
    with JournalWriter.open(tmp_path / "r.jsonl", RATINGS, {}, silent) as writer:
        person.rate(AnswerSet({evil.id: evil}, {}), writer, QUIET)
    shown = capsys.readouterr().out
    assert "\x1b[2J" not in shown and "\x07" not in shown and "␛[2Jwiped" in shown
    for secret in ("temperature", "runs/mine", "w1", "place", evil.answers[0].id):
        assert secret not in shown


def test_the_command_in_a_real_terminal_writes_each_rating_at_once_and_resumes(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    answers, out = write_answers(tmp_path / "a.jsonl", *PROMPTS[:3]), tmp_path / "r.jsonl"
    words = ["prefer", "rank", str(answers), "--by", "person", "--rater", "小明", "--out", str(out)]
    code = f"import sys; from fledge.cli import main; sys.exit(main({words!r}))"
    environment = {**os.environ, "LANG": "zh_CN.UTF-8", "TERM": "xterm", "COLUMNS": "60"}

    def session(keys: list[tuple[str, int]]) -> str:
        """Type keys, each after the file has this many lines; returns what the terminal showed."""
        main_end, terminal = pty.openpty()
        seen = b""
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=terminal, stdout=terminal, stderr=terminal, env=environment
        ) as process:
            os.set_blocking(main_end, False)
            for key, lines in [*keys, ("", -1)]:
                limit = time.monotonic() + 120
                while process.poll() is None if lines < 0 else seen.count("›".encode()) <= 0 or grown(out) != lines:
                    seen += read_all(main_end)
                    assert time.monotonic() < limit, seen.decode()
                    time.sleep(0.02)
                os.write(main_end, f"{key}\n".encode()) if key else None
            seen += read_all(main_end)
            assert process.returncode == 0, seen.decode()
        os.close(terminal)
        os.close(main_end)
        return seen.decode()

    first = session([("2", 1), ("1", 2), ("u", 3), ("q", 4)])
    assert "1 of 3" in first and "2 of 3" in first and "动物" in first and "简短回答" in first
    assert "1 rating is kept; 2 comparisons are left" in first
    second = session([("１", 4), ("t", 5)])
    assert "2 of 3" in second and "1 of 3" not in second and "all comparisons are rated" in second
    verdicts = [line["verdict"] for line in replayed(lines_of(out)[1:])]
    assert verdicts == ["second", "first", "tie"] and json.loads(out.read_text().splitlines()[0])["rater"] == "小明"


def grown(file: Path) -> int:
    """The number of lines of a file that may not be there yet."""
    return file.read_bytes().count(b"\n") if file.exists() else 0


def read_all(end: int) -> bytes:
    """What a terminal has shown since the last time."""
    try:
        return os.read(end, 1 << 16)
    except (BlockingIOError, OSError):
        return b""


def test_a_full_disk_is_told_and_the_ratings_go_on_when_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = write_answers(tmp_path / "a.jsonl", *(asked(f"{number}?", "yes", "no") for number in range(40)))
    words = ["prefer", "rank", str(answers), "--by", "person", "--repeat", "0", "--out", str(tmp_path / "r.jsonl")]
    assert_error(fledge(*words, text="1\n" * 40, limit=3000), "r.jsonl: cannot write: File too large", "free some space")
    assert (tmp_path / "r.jsonl").stat().st_size == 3000
    monkeypatch.setattr(sys, "stdin", io.StringIO("2\n" * 40))
    assert main(words) == 0
    verdicts = [line["verdict"] for line in lines_of(tmp_path / "r.jsonl")[1:]]
    assert verdicts == sorted(verdicts) and len(verdicts) == 40 and verdicts.count("first") > 10


def test_a_piped_input_rates_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answers = write_answers(tmp_path / "a.jsonl", *PROMPTS[:2])
    monkeypatch.setattr(sys, "stdin", io.StringIO("1\n2\n"))
    assert main(["prefer", "rank", str(answers), "--by", "person", "--out", str(tmp_path / "r.jsonl")]) == 0
    assert "2 ratings are kept; all comparisons are rated" in capsys.readouterr().out

"""Pairs follow from ratings: every pair that was rated is a pair or counted with its reason, and is read as it was written."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.cli import main
from fledge.data.parsing.items import PreferencePair
from fledge.data.parsing.rows import parse_preference_pair, read_row
from fledge.errors import FledgeError
from fledge.prefer.pair_files import PairOptions, make_pairs, report_lines
from fledge.prefer.pairs import Gathered, PairSettings, Triple, mixed, split
from fledge.prefer.ratings import RaterName
from fledge.recipe import Source
from fledge.run import Console
from tests.support.preferences import answer, asked, compared, scores, write_answers, write_ratings
from tests.support.sources import jsonl

QUIET = Console(quiet=True)
PERSON, RULES, JUDGE = (
    RaterName("anna", "person", True),
    RaterName("rules", "rules", False),
    RaterName("judge", "judge", False),
)
ONE = asked("q1", "good", "fair", "bad", reference="good", system="Be short.")
TWO = asked("q2", "yes", "no")


def ratings(folder: Path, name: RaterName, *lines: dict[str, Any], prompts: tuple = (ONE, TWO)) -> str:
    """A file of ratings."""
    answers = folder / "a.jsonl"
    if not answers.exists():
        write_answers(answers, *prompts)
    return str(write_ratings(folder / f"{name.name}.jsonl", answers, name, lines))


def make(folder: Path, *files: str, **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The report and the training rows, with the texts of their answers as training reads them."""
    settings = {key: options.pop(key) for key in ("per_prompt", "min_margin", "keep_cut", "seed") if key in options}
    report = make_pairs(files, str(folder / "p.jsonl"), PairOptions(settings=PairSettings(**settings), **options), QUIET)
    rows = [json.loads(line) for line in (folder / "p.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        parsed = read_row(row, Source(path="p.jsonl"), parse_preference_pair)
        assert isinstance(parsed.item, PreferencePair) and parsed.unread_columns == ["source", "provenance"]
        assert not parsed.events
        row["chosen"], row["rejected"] = parsed.item.chosen, parsed.item.rejected
    total = report["rated_pairs"] + report["pairs_of_people"]
    assert sum(report["pairs"].values()) + sum(report["left_out"].values()) == total
    return report, rows


def test_the_clearest_pair_of_a_prompt_is_kept_with_where_it_comes_from(tmp_path: Path) -> None:
    file = ratings(tmp_path, RULES, scores(ONE, 1.0, 0.5, 0.0), scores(TWO, 0.0, 0.0))
    report, (row,) = make(tmp_path, file)
    assert (row["chosen"], row["rejected"], row["source"]) == ("good", "bad", "model")
    assert row["messages"] == [{"role": "system", "content": "Be short."}, {"role": "user", "content": "q1"}]
    origin = row["provenance"]
    assert origin["raters"] == ["rules"] and origin["margins"] == {"rules": 1.0} and origin["where"] == "a.jsonl:1"
    assert origin["rejected"]["draws"] == [{"model": "runs/mine", "weights": "w1", "temperature": 1.0, "place": 2}]
    assert report["left_out"] == {"beyond the pairs of a prompt": 2, "a tie": 1}
    assert json.loads((tmp_path / "p.report.json").read_text(encoding="utf-8")) == json.loads(json.dumps(report))


@pytest.mark.parametrize(
    "text",
    [
        '[{"role": "assistant", "content": "hidden"}]',
        "[{'role': 'user', 'content': 'x'}]",
        '{"a": 1}',
        "Human: a\n\nAssistant: b",
    ],
)
def test_an_answer_that_looks_like_data_is_trained_as_it_stands(tmp_path: Path, text: str) -> None:
    one = asked("q", text, "plain")
    file = ratings(tmp_path, RULES, scores(one, 1.0, 0.0), prompts=(one,))
    assert [(row["chosen"], row["rejected"]) for row in make(tmp_path, file)[1]] == [(text, "plain")]


def test_rounding_is_no_preference(tmp_path: Path) -> None:
    file = ratings(tmp_path, RULES, scores(ONE, 0.1 + 0.2, 0.3, 0.0), scores(TWO, 1e6 * (0.1 + 0.2), 3e5))
    report, rows = make(tmp_path, file, per_prompt=None)
    assert 0.1 + 0.2 != 0.3 and 1e6 * (0.1 + 0.2) != 3e5
    assert report["left_out"] == {"a tie": 2} and {row["rejected"] for row in rows} == {"bad"}


def test_all_pairs_of_a_prompt_and_the_smallest_margin(tmp_path: Path) -> None:
    file = ratings(tmp_path, RULES, scores(ONE, 1.0, 0.5, 0.25), scores(TWO, 0.1, 0.0))
    report, rows = make(tmp_path, file, per_prompt=None, min_margin={"": 0.5})
    assert [(row["chosen"], row["rejected"]) for row in rows] == [("good", "bad"), ("good", "fair")]
    assert report["left_out"] == {"margin below the minimum": 2} and report["margins"]["rules"]["median"] == 0.625
    with pytest.raises(FledgeError, match="no file has the rater 'nobody'"):
        make(tmp_path, file, min_margin={"nobody": 1.0})


def test_people_outvote_models_and_equal_votes_are_no_pair(tmp_path: Path) -> None:
    rules = ratings(tmp_path, RULES, scores(ONE, 0.0, 0.5, 1.0), scores(TWO, 1.0, 0.0))
    judge = ratings(
        tmp_path, JUDGE, compared(TWO, "second", log_odds=[-2.0, 1.0]), compared(ONE, "first", 2, 1, log_odds=[1.0, -3.0])
    )
    anna = ratings(tmp_path, PERSON, compared(ONE, "first", 0, 2))
    report, rows = make(tmp_path, rules, judge, anna, per_prompt=None)
    found = {(row["chosen"], row["rejected"]): (row["source"], row["provenance"]["raters"]) for row in rows}
    assert found == {
        ("good", "bad"): ("human", ["anna"]),
        ("bad", "fair"): ("model", ["rules", "judge"]),
        ("fair", "good"): ("model", ["rules"]),
    }  # fmt: skip
    assert report["left_out"] == {"raters disagree": 1} and report["sources"] == {"human": 1, "model": 2}
    margins = {row["chosen"]: row["provenance"]["margins"] for row in rows}
    assert margins["bad"] == {"rules": 0.5, "judge": 2.0} and margins["good"] == {}


@pytest.mark.parametrize(("verdict", "reason"), [("tie", "a tie"), ("both_bad", "both answers are bad")])
def test_a_person_who_finds_both_equal_overrules_models_and_one_who_skips_does_not(
    tmp_path: Path, verdict: str, reason: str
) -> None:
    rules = ratings(tmp_path, RULES, scores(ONE, 1.0, 0.5, 0.0), scores(TWO, 1.0, 0.0))
    anna = ratings(tmp_path, PERSON, compared(TWO, verdict), compared(ONE, "skip", 0, 2))
    report, rows = make(tmp_path, rules, anna)
    assert report["left_out"] == {"beyond the pairs of a prompt": 2, reason: 1} and [row["chosen"] for row in rows] == ["good"]


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        ("tie", "a tie"),
        ("both_bad", "both answers are bad"),
        ("skip", "skipped"),
        ("inconsistent", "inconsistent in the two orders"),
    ],
)
def test_a_comparison_without_a_winner_is_counted_by_its_reason(tmp_path: Path, verdict: str, reason: str) -> None:
    file = ratings(tmp_path, PERSON, compared(ONE, "first"), compared(TWO, verdict))
    assert make(tmp_path, file)[0]["left_out"] == {reason: 1}
    alone = ratings(tmp_path, RaterName("ben", "person", True), compared(TWO, verdict))
    with pytest.raises(FledgeError, match=f"no pair is left: 1 × {reason}"):
        make(tmp_path, alone)


def test_an_answer_that_was_cut_is_not_chosen_and_an_empty_one_makes_no_pair(tmp_path: Path) -> None:
    cut = asked("q3", answer("long and", 0, "length"), "short", "")
    file = ratings(tmp_path, RULES, scores(cut, 3.0, 2.0, 1.0), scores(TWO, 1.0, 0.0), prompts=(cut, TWO))
    report, rows = make(tmp_path, file, per_prompt=None)
    assert report["left_out"] == {"the chosen answer is cut": 1, "an answer is empty": 2} and len(rows) == 1
    (tmp_path / "p.jsonl").unlink()
    report, rows = make(tmp_path, file, per_prompt=None, keep_cut=True)
    assert report["left_out"] == {"an answer is empty": 2} and [row["chosen"] for row in rows] == ["long and", "yes"]


def test_pairs_of_people_are_read_from_any_rows_and_mixed_by_share(tmp_path: Path) -> None:
    prompts = tuple(asked(f"q{number}", "yes", "no") for number in range(20))
    file = ratings(tmp_path, RULES, *(scores(one, 1.0, 0.0) for one in prompts), prompts=prompts)
    rows = [{"prompt": f"h{number}", "chosen": "good", "rejected": "bad"} for number in range(6)]
    rows += [{"prompt": "q0", "chosen": "no", "rejected": "yes"}, {"prompt": "x", "chosen": "same", "rejected": "same"}]
    people = str(jsonl(tmp_path / "people.jsonl", rows))
    report, found = make(tmp_path, file, people=(people,), mix={"human": 0.5, "model": 0.5})
    assert report["sources"] == {"human": 7, "model": 7} and report["pairs_of_people"] == 7
    assert report["left_out"] == {"left out by the mix": 12, "an equal pair is there already": 1}
    assert [row["source"] for row in found if row["messages"][0]["content"] == "q0"] == ["human"]
    assert make(tmp_path, file, people=(people,), mix={"human": 0.5, "model": 0.5})[1] == found
    (tmp_path / "p.jsonl").unlink()
    assert make(tmp_path, file, people=(people,), mix={"human": 0.3, "model": 0.7})[0]["sources"] == {"human": 7, "model": 16}
    for mix, message in (
        ({"human": 0.5, "model": 0.6}, "add up to 1, not to 1.1"), ({"human": 1.0, "model": 0.0}, "above 0"),
        ({"anna": 1.0}, "unknown kind of pairs 'anna'"), ({"human": 0.5, "model": 0.5}, "no pairs of kind 'human'"),
    ):  # fmt: skip
        with pytest.raises(FledgeError, match=message):
            make(tmp_path, file, mix=mix)


TRIPLES = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 3), st.sampled_from(["human", "model"])), min_size=1, max_size=30, unique=True
)


@given(TRIPLES, st.floats(0.05, 0.6), st.integers(0, 3))
def test_training_and_validation_share_no_prompt_and_lose_no_pair(pairs: list[tuple], share: float, seed: int) -> None:
    triples = [_triple(*one) for one in pairs]
    prompts = {one.prompt_id for one in triples}
    if max(1, round(share * len(prompts))) >= len(prompts):
        with pytest.raises(FledgeError, match="too few"):
            split(triples, share, seed)
        return
    training, held_out = split(triples, share, seed)
    assert not {one.prompt_id for one in training} & {one.prompt_id for one in held_out}
    assert Counter(map(id, training)) + Counter(map(id, held_out)) == Counter(map(id, triples))
    assert len({one.prompt_id for one in held_out}) == max(1, round(share * len(prompts)))
    assert split(triples, 0.0, seed) == (triples, [])


@given(TRIPLES, st.sampled_from([0.1, 0.3, 0.5, 0.9]))
def test_a_mix_has_its_shares_up_to_a_pair(pairs: list[tuple], share: float) -> None:
    triples, shares = [_triple(*one) for one in pairs], {"human": share, "model": 1 - share}
    counts = Counter(one.source for one in triples)
    if len(counts) < 2:
        with pytest.raises(FledgeError, match="no pairs of kind"):
            mixed(Gathered(triples), shares, 0)
        return
    gathered = mixed(Gathered(triples), shares, 0)
    found = Counter(one.source for one in gathered.triples)
    total = min(counts[source] / shares[source] for source in shares)
    assert all(abs(found[source] - shares[source] * total) <= 1 for source in shares)
    assert len(gathered.triples) + gathered.left_out["left out by the mix"] == len(triples)
    assert any(found[source] == counts[source] for source in shares)


def _triple(prompt: int, number: int, source: str) -> Triple:
    return Triple(
        prompt=asked(f"q{prompt}", "x").prompt, chosen=f"a{number}", rejected=f"b{source}", source=source, provenance={}
    )


def test_a_prompt_with_and_without_a_system_turn_is_on_one_side(tmp_path: Path) -> None:
    prompts = tuple(asked(f"q{number}", "yes", "no", system="Be short.") for number in range(12))
    file = ratings(tmp_path, RULES, *(scores(one, 1.0, 0.0) for one in prompts), prompts=prompts)
    rows = [{"prompt": f" q{number}\n", "chosen": "fine", "rejected": "bad"} for number in range(12)]
    rows.append({"prompt": "q0", "chosen": "no", "rejected": "yes"})
    report, training = make(tmp_path, file, people=(str(jsonl(tmp_path / "people.jsonl", rows)),), validation=0.5)
    held_out = [json.loads(line) for line in (tmp_path / "p.validation.jsonl").read_text(encoding="utf-8").splitlines()]
    questions = [{row["messages"][-1]["content"].strip() for row in side} for side in (training, held_out)]
    assert not questions[0] & questions[1] and report["prompts"] == {"training": 6, "validation": 6}
    assert report["left_out"] == {"an equal pair is there already": 1}


def test_different_system_prompts_may_prefer_different_answers(tmp_path: Path) -> None:
    prompts = (asked("Hi", "yes", "no", system="Agree."), asked("Hi", "yes", "no", system="Disagree."))
    file = ratings(tmp_path, RULES, scores(prompts[0], 1.0, 0.0), scores(prompts[1], 0.0, 1.0), prompts=prompts)
    assert [row["chosen"] for row in make(tmp_path, file)[1]] == ["yes", "no"]


def test_pairs_that_another_call_held_out_are_not_left_beside_new_ones(tmp_path: Path) -> None:
    prompts = tuple(asked(f"q{number}", "yes", "no") for number in range(4))
    file = ratings(tmp_path, RULES, *(scores(one, 1.0, 0.0) for one in prompts), prompts=prompts)
    make(tmp_path, file, validation=0.5)
    (tmp_path / "p.jsonl").unlink()
    with pytest.raises(FledgeError, match=r"p\.validation\.jsonl: these pairs were held out by another call"):
        make(tmp_path, file)
    assert not (tmp_path / "p.jsonl").exists()


def test_ratings_that_are_not_complete_are_refused_of_models_and_told_of_people(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = write_answers(tmp_path / "a.jsonl", ONE, TWO)
    rules = write_ratings(tmp_path / "rules.jsonl", answers, RULES, [scores(ONE, 1.0, 0.5, 0.0)], planned=2)
    words = ["--out", str(tmp_path / "p.jsonl")]
    for command in (["pairs", str(rules), *words], ["agreement", str(rules)]):
        assert main(["prefer", *command]) == 2
        assert "rules.jsonl: rating has not finished: it has 1 of 2 lines" in capsys.readouterr().err
    lines = [compared(ONE, "first"), compared(TWO, "first"), {"undo": 1}]
    anna = write_ratings(tmp_path / "anna.jsonl", answers, PERSON, lines, planned=4)
    assert main(["prefer", "pairs", str(anna), *words]) == 0
    assert "anna.jsonl: 1 of 4 comparisons rated; the others count as not rated" in capsys.readouterr().err
    assert main(["prefer", "agreement", str(anna)]) == 0 and "(1 of 4 comparisons rated)" in capsys.readouterr().out
    assert main(["prefer", "agreement", str(anna), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["raters"]["anna"]["planned"] == 4


def test_what_is_unusual_in_rows_of_people_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ratings(tmp_path, RULES, scores(ONE, 1.0, 0.5, 0.0))
    (folder := tmp_path / "people").mkdir()
    (folder / "notes.md").write_text("not rows", encoding="utf-8")
    turns = [{"role": "assistant", "content": "good", "weight": 0.5}]
    row = {"prompt": "q", "chosen": turns, "rejected": "bad", "colour": "red"}
    (folder / "pairs.json").write_text(json.dumps({"rows": [row]}), encoding="utf-8")
    assert main(["prefer", "pairs", file, "--human", str(folder), "--out", str(tmp_path / "p.jsonl")]) == 0
    told = capsys.readouterr().err
    for text in ("people: not read: notes.md", "pairs.json: rows are read from the list inside an object",
                 "note: 1 × weights of answers are not used", "columns that nothing reads: colour (1 rows)"):  # fmt: skip
        assert text in told, text


def test_only_lengths_that_differ_tell_something(tmp_path: Path) -> None:
    same = tuple(asked(f"q{number}", "one", "two") for number in range(20))
    file = ratings(tmp_path, RULES, *(scores(one, 1.0, 0.0) for one in same), prompts=same)
    report, _ = make(tmp_path, file)
    assert report["longer_chosen"] == {"value": None, "interval": None, "pairs": 0, "equal_length": 20}
    told = "\n".join(report_lines(report, "p.jsonl"))
    assert "in no pair is one answer longer" in told and "length tells much" not in told
    (other := tmp_path / "other").mkdir()
    prompts = (*same, *(asked(f"r{number}", "long one", "short") for number in range(10)))
    file = ratings(other, RULES, *(scores(one, 1.0, 0.0) for one in prompts), prompts=prompts)
    told = "\n".join(report_lines(make(other, file)[0], "p.jsonl"))
    assert "100.0% [72.2%, 100.0%] of 10 pairs of unequal length; 20 pairs of equal length" in told and "length tells" in told


@pytest.mark.parametrize("name", ["pairs", "pairs.jsonl.gz", "pairs.csv", "pairs.json"])
def test_a_name_that_training_does_not_read_as_lines_is_refused_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert main(["prefer", "pairs", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / name)]) == 2
    assert "--out: " in (told := capsys.readouterr().err) and "ends with .jsonl or .ndjson" in told


def test_held_out_pairs_and_files_that_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tuple(asked(f"q{number}", "yes, indeed", "no") for number in range(10))
    file = ratings(tmp_path, RULES, *(scores(one, 1.0, 0.0) for one in prompts), prompts=prompts)
    words = ["prefer", "pairs", file, "--out", str(tmp_path / "p.jsonl"), "--validation", "0.2"]
    assert main(words) == 0 and main(words) == 0  # equal content may be written again
    told = capsys.readouterr().out
    assert "p.jsonl: 8 pairs of 8 prompts" in told and "p.validation.jsonl: 2 pairs of 2 other prompts" in told
    assert "longer one in 100.0%" in told and "length tells much" in told
    questions = [
        {json.loads(line)["messages"][0]["content"] for line in (tmp_path / name).read_text().splitlines()}
        for name in ("p.jsonl", "p.validation.jsonl")
    ]
    assert len(questions[0]) == 8 and len(questions[1]) == 2 and not questions[0] & questions[1]
    assert main([*words, "--seed", "5"]) == 2 and "with another content" in capsys.readouterr().err
    assert main([*words[:-1], "0.99"]) == 2 and "too few to hold 99% of them out" in capsys.readouterr().err
    assert main([*words[:3], "--json", "--out", str(tmp_path / "all.jsonl")]) == 0
    assert json.loads(capsys.readouterr().out)["pairs"] == {"training": 10, "validation": 0}


def test_answers_that_are_gone_changed_or_unknown_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ratings(tmp_path, RULES, scores(ONE, 1.0, 0.5, 0.0))
    words = ["prefer", "pairs", file, "--out", str(tmp_path / "p.jsonl")]
    moved = tmp_path / "moved.jsonl"
    (tmp_path / "a.jsonl").rename(moved)
    assert main(words) == 2 and "its answers are not there" in capsys.readouterr().err
    assert main([*words, "--answers", str(moved)]) == 0
    other = write_answers(tmp_path / "other.jsonl", TWO)
    assert main([*words, "--answers", str(other)]) == 2
    assert "not the version of the answers that was rated" in capsys.readouterr().err
    write_answers(tmp_path / "a.jsonl", ONE, TWO)
    for line, message in (
        ({"prompt": "0" * 16, "first": "a", "second": "b", "verdict": "first"}, "unknown prompt"),
        ({"prompt": ONE.id, "first": ONE.answers[0].id, "second": "b", "verdict": "first"}, "unknown answer, b"),
    ):
        strange = ratings(tmp_path / message.replace(" ", "_").replace(",", ""), PERSON, line, prompts=(ONE, TWO))
        assert main(["prefer", "pairs", strange, "--out", str(tmp_path / "s.jsonl")]) == 2
        assert message in capsys.readouterr().err

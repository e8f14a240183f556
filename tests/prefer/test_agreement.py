"""Cohen's κ of raters, by hand and by its definition; intervals; and what is said when there is too little."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.cli import main
from fledge.evaluate.intervals import wilson_interval
from fledge.prefer.agreement import FEW_PAIRS, agree, kappa, self_agreement
from fledge.prefer.ratings import RaterName, Rating, RatingsFile, Verdict, pair_of
from tests.support.preferences import asked, compared, write_answers, write_ratings

VERDICTS: tuple[Verdict, ...] = ("first", "second", "tie", "both_bad")


def rated(rater: str, verdicts: list[Verdict], per_prompt: int = 1) -> RatingsFile:
    """A rater with these verdicts on pairs of the answers a and b, to prompts that have `per_prompt` pairs each."""
    ratings = []
    for number, verdict in enumerate(verdicts):
        a, b = f"a{number % per_prompt}", f"b{number % per_prompt}"
        preferred = {"first": a, "second": b}.get(verdict)
        ratings.append(Rating(pair=pair_of(f"q{number // per_prompt}", a, b), verdict=verdict, preferred=preferred))
    return RatingsFile(path=Path("r"), rater=rater, kind="person", is_human=True, answers={}, ratings=tuple(ratings))


def test_kappa_by_hand() -> None:
    """Of 20 pairs ties are 4 and 6, 3 of both; 10 are decided alike: p_o = 13/20, p_e = 0.2·0.3 + 0.8·0.7/2 = 0.34."""
    one: list[Verdict] = ["tie"] * 3 + ["tie"] + ["first"] * 8 + ["first"] * 3 + ["second"] * 2 + ["first"] * 3
    other: list[Verdict] = ["tie"] * 3 + ["first"] + ["first"] * 8 + ["second"] * 3 + ["second"] * 2 + ["tie"] * 3
    found = agree(rated("one", one), rated("other", other))
    assert (found.pairs, found.prompts, found.raw) == (20, 20, 0.65)
    assert found.kappa == pytest.approx((0.65 - 0.34) / (1 - 0.34))


def by_definition(one: list[str], other: list[str]) -> float:
    """Cohen's κ of labels: agreement beyond that of the marginal frequencies, each pair counted in both orders."""
    swap = {"first": "second", "second": "first"}
    a, b = [*one, *(swap.get(label, label) for label in one)], [*other, *(swap.get(label, label) for label in other)]
    labels = sorted({*a, *b})
    table = np.array([[sum(x == i and y == j for x, y in zip(a, b, strict=True)) for j in labels] for i in labels]) / len(a)
    expected = float(table.sum(axis=1) @ table.sum(axis=0))
    return (float(np.trace(table)) - expected) / (1 - expected) if expected < 1 else float("nan")


@given(st.lists(st.tuples(st.sampled_from(VERDICTS), st.sampled_from(VERDICTS)), min_size=1, max_size=30))
def test_kappa_is_cohen_s_over_both_orders_and_knows_no_order_of_answers_or_raters(
    pairs: list[tuple[Verdict, Verdict]],
) -> None:
    one, other = ([verdict[side] for verdict in pairs] for side in (0, 1))
    expected = by_definition(*([("tie" if label == "both_bad" else label) for label in labels] for labels in (one, other)))
    found, swapped = agree(rated("a", one), rated("b", other)), agree(rated("b", other), rated("a", one))
    assert (found.kappa is None) == np.isnan(expected) and swapped.kappa == found.kappa
    if found.kappa is not None:
        assert found.kappa == pytest.approx(expected) and found.kappa <= 1


def test_intervals_are_repeatable_hold_the_value_and_are_wider_where_answers_of_one_prompt_are_rated_alike() -> None:
    generator = np.random.default_rng(1)
    truth = generator.integers(0, 2, 60)
    noisy = np.where(generator.random(60) < 0.2, 1 - truth, truth)
    names: list[Verdict] = ["first", "second"]
    alone = [rated(name, [names[value] for value in values]) for name, values in (("a", truth), ("b", noisy))]
    together = [rated(name, [names[v] for v in values.repeat(6)], 6) for name, values in (("a", truth), ("b", noisy))]
    found, again, clustered = agree(*alone), agree(*alone), agree(*together)
    assert found == again and found.kappa == clustered.kappa and clustered.pairs == 360 and clustered.prompts == 60
    for one in (found, clustered):
        assert one.kappa is not None and one.kappa_interval is not None
        assert one.kappa_interval[0] < one.kappa < one.kappa_interval[1]
    assert found.kappa_interval == clustered.kappa_interval  # 360 pairs of 60 prompts tell no more than 60


def test_complete_agreement_has_an_interval_below_one() -> None:
    one = rated("a", ["first", "second", "tie"] * 10)
    found = agree(one, rated("b", ["first", "second", "tie"] * 10))
    assert found.kappa == 1 and found.kappa_interval is not None and 0.5 < found.kappa_interval[0] < 1
    assert found.kappa_interval[1] == pytest.approx(1)


def test_pairs_of_one_prompt_are_no_independent_trials() -> None:
    """15 prompts of 6 pairs each, all alike, tell as much as 15 pairs; 3 prompts tell nothing."""
    many, alone = (agree(*(rated(name, ["first"] * 15 * size, size) for name in "ab")) for size in (6, 1))
    assert many.pairs == 90 and many.raw_interval == pytest.approx(wilson_interval(15, 15)) and alone.raw_interval is None
    few = agree(*(rated(name, ["first"] * 36, 4) for name in "ab"))
    assert few.prompts == 9 and few.raw_interval is None and few.kappa_interval is None and "10 prompts" in few.too_few


def test_skipped_and_inconsistent_pairs_do_not_count() -> None:
    found = agree(rated("a", ["first", "skip", "first"]), rated("b", ["first", "first", "inconsistent"]))
    assert (found.pairs, found.raw, found.kappa_interval) == (1, 1.0, None)
    assert np.isnan(kappa(np.array([3.0, 3, 3, 3])))  # both give only ties


def test_the_command_tells_counts_agreement_and_what_is_too_little(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = [asked(f"q{number}", "good", "bad") for number in range(FEW_PAIRS + 4)]
    answers = write_answers(tmp_path / "a.jsonl", *prompts)
    anna = [compared(one, "first") for one in prompts] + [compared(prompts[0], "second", 1, 0, repeat=True)]
    judge = [compared(one, "first", log_odds=[2.0, -1.0]) for one in prompts[:-4]]
    judge += [compared(one, "inconsistent", log_odds=[2.0, 1.0]) for one in prompts[-4:]]
    few = [compared(one, "second") for one in prompts[:3]]
    files = [
        write_ratings(tmp_path / f"{name}.jsonl", answers, RaterName(name, kind, kind == "person"), lines)
        for name, kind, lines in (("anna", "person", anna), ("judge", "judge", judge), ("ben", "person", few))
    ]
    assert main(["prefer", "agreement", *map(str, files)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in (
        "anna person 24 24 one is better 1 of 1 comparisons that came twice", "20 one is better, 4 inconsistent",
        "20 of 24 comparisons in both orders", "anna – judge 20 20 100.0%", "1.00 [", "anna – ben 3 3 0.0% too few: 20 pairs",
    ):  # fmt: skip
        assert text in shown, text
    assert main(["prefer", "agreement", *map(str, files), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["raters"]["judge"]["self_agreement"]["same"] == 20 and value["agreement"][1]["too_few"]
    assert value["agreement"][0]["kappa"] == 1 and value["agreement"][1]["kappa_interval"] is None
    other = write_ratings(tmp_path / "again.jsonl", answers, RaterName("anna", "person", True), few)
    assert main(["prefer", "agreement", str(files[0]), str(other)]) == 2
    assert "has the same rater, 'anna'" in capsys.readouterr().err
    assert self_agreement(rated("x", ["first"])) is None


@pytest.mark.parametrize(
    "line",
    [{"x": 1}, {"prompt": "p", "scores": {"a": "b"}}, {"prompt": "p", "first": "a", "second": "a", "verdict": "tie"},
     {"prompt": "p", "first": "a", "second": "b", "verdict": "maybe"}],
)  # fmt: skip
def test_a_line_that_is_no_rating_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], line: dict) -> None:
    answers = write_answers(tmp_path / "a.jsonl", asked("q", "a", "b"))
    file = write_ratings(tmp_path / "r.jsonl", answers, RaterName("x", "person", True), [{"undo": 1}, line])
    assert main(["prefer", "agreement", str(file)]) == 2
    assert "r.jsonl:3: damaged: this is no rating" in capsys.readouterr().err

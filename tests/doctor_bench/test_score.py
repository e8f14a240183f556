from pathlib import Path

import pytest

from fledge.doctor_bench import results as results_module
from fledge.doctor_bench.case_key import CaseKey
from fledge.doctor_bench.effects import Effect, Place, place_of
from fledge.doctor_bench.judging import Judgement, Verdict
from fledge.doctor_bench.page import BEGIN, END, SYMPTOMS_BEGIN, SYMPTOMS_END, Page, write_page
from fledge.doctor_bench.results import results_of
from fledge.doctor_bench.score import ABSTAINED, NOTHING, Rate, confusion, misses, scores, silent_scores
from fledge.doctor_bench.text import lines_of
from fledge.errors import FledgeError

MASK, HIGH = "prompt not masked", "learning rate too high"


def _cause(name: str, category: str, confidence: str = "certain") -> dict[str, object]:
    return {"cause": name, "category": category, "confidence": confidence, "severity": "error", "strength": 1.0, "message": "x"}


def _judgement(condition: str, seed: int, causes: list[dict[str, object]], *, alarm: bool, is_fault: bool = True) -> Judgement:
    level = {MASK: "all", HIGH: "8x"}.get(condition, "")
    verdict = Verdict(is_alarm=alarm, causes=tuple(causes))
    key = CaseKey(group="dev", shape="sft", condition=condition, level=level, seed=seed, is_fault=is_fault)
    moments = ("curves", "full", "before", "within 20 steps")
    return Judgement(key=key.text, verdicts=dict.fromkeys(moments, verdict), steps=0 if alarm else None)


RIGHT = _judgement(MASK, 1, [_cause(MASK, "targets")], alarm=True)
SECOND = _judgement(MASK, 2, [_cause(HIGH, "learning rate"), _cause(MASK, "targets")], alarm=True)
SYMPTOM_ALONE = _judgement(HIGH, 1, [_cause(HIGH, "learning rate", "possible")], alarm=True)
SILENT = _judgement(HIGH, 2, [], alarm=False)
HEALTHY = [_judgement("plain", seed, [], alarm=False, is_fault=False) for seed in (1, 2, 3)]
FALSE_ALARM = _judgement("wsd decay", 1, [_cause(HIGH, "learning rate", "likely")], alarm=True, is_fault=False)
ALL = [RIGHT, SECOND, SYMPTOM_ALONE, SILENT, *HEALTHY, FALSE_ALARM]


def test_figures_are_counted() -> None:
    found = scores(ALL, {})
    assert (found.recall.hits, found.recall.count) == (3, 4)
    assert (found.false_alarms.hits, found.false_alarms.count) == (1, 4)
    assert (found.top1.hits, found.top1.count) == (1, 4)
    assert (found.precision.hits, found.precision.count) == (1, 2)
    assert (found.top3.hits, found.top3.count) == (3, 4)
    assert (found.abstention.hits, found.abstention.count) == (2, 4)
    # targets: 1 right of 2 true and 1 said; learning rate: 0 right
    assert found.category_f1 == pytest.approx((2 / 3 + 0) / 2)


def test_a_fault_without_effect_is_a_class_of_its_own() -> None:
    none = Effect(change=0.0, p_value=1.0, pairs=2, is_material=False)
    effects: dict[Place, Effect] = {place_of(RIGHT.case): none}
    found = scores(ALL, effects)
    assert found.recall.count == found.top1.count == 2
    assert (found.alarms_without_effect.hits, found.alarms_without_effect.count) == (2, 2)


def test_confusions_and_misses_are_listed() -> None:
    table = confusion(ALL, {})
    assert table[MASK] == {MASK: 1, HIGH: 1}
    assert table[HIGH] == {ABSTAINED: 1, NOTHING: 1}
    assert [one.judgement for one in misses(ALL, {})] == [SECOND, SYMPTOM_ALONE, SILENT, FALSE_ALARM]


def test_silent_faults_are_scored_by_moment() -> None:
    found = silent_scores(ALL, {})
    assert (found["before: told"].hits, found["before: told"].count) == (2, 2)
    assert (found["within 20 steps: named"].hits, found["within 20 steps: named"].count) == (1, 2)


def test_a_case_that_cannot_be_judged_is_counted_apart() -> None:
    failed = Judgement(key=RIGHT.key, failure="broken")
    found = scores([*ALL, failed], {})
    assert found.failures == 1
    assert found.recall.count == 4


def test_results_are_shown() -> None:
    results = results_of(ALL, [], {})
    results["baselines"] = {}
    assert results["summary"]["recall"] == 0.75
    assert results["counts"]["healthy"] == 4
    lines = "\n".join(lines_of(results))
    assert "faults that are told: 75.0 %" in lines
    page = Page(results).text()
    assert "| `prompt not masked` | `prompt not masked` 1, `learning rate too high` 1 |" in page
    chinese = Page(results, is_chinese=True).text()
    assert [line.count("|") for line in chinese.splitlines()] == [line.count("|") for line in page.splitlines()]


def test_a_rate_has_an_interval() -> None:
    assert Rate(0, 0).value is None and Rate(0, 0).text() == "–"
    low, high = Rate(40, 40).interval
    assert low == pytest.approx(0.912, abs=1e-3) and high == pytest.approx(1.0)


def test_symptoms_are_counted_with_the_faults_of_their_runs(tmp_path: Path) -> None:
    seen = Verdict(is_alarm=True, seen=("validation rises",))
    runs = [
        CaseKey(group="dev", shape="sft", condition=condition, level="", seed=seed, is_fault=bool(condition))
        for seed, condition in enumerate(["overfit", "overfit", HIGH, ""])
    ]
    judgements = [Judgement(key=key.text, verdicts={"full": seen}) for key in runs]
    results = {"symptoms": results_module._symptoms(judgements)}
    assert results["symptoms"] == {"validation rises": {"overfit": 2, HIGH: 1, "": 1}}
    page = tmp_path / "zh" / "page.md"
    page.parent.mkdir()
    page.write_text(f"before\n{SYMPTOMS_BEGIN}\n{SYMPTOMS_END}\nafter\n", encoding="utf-8")
    write_page(results, page)
    text = page.read_text(encoding="utf-8")
    assert f"| `validation rises` | 4 | `overfit` 50%, `{HIGH}` 25%, 健康 25% |" in text
    assert text.startswith("before\n") and text.endswith("after\n")


def test_a_sample_is_drawn_by_a_hash_and_grows_with_its_share() -> None:
    keys = [CaseKey(group="dev", shape="sft", condition=MASK, level="", seed=seed, is_fault=True) for seed in range(2000)]
    small, large = ({key for key in keys if key.is_sampled(share)} for share in (30, 60))
    assert small < large and len(small) == pytest.approx(600, abs=80)
    assert all(key.is_sampled(100) for key in keys)


def test_results_are_put_between_the_marks_of_a_page(tmp_path: Path) -> None:
    results = results_of(ALL, [], {})
    results["baselines"] = {}
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{BEGIN}\nearlier tables\n{END}\n\nafter\n", encoding="utf-8")
    write_page(results, page)
    write_page(results, page)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Title\n") and text.endswith("\n\nafter\n") and "earlier tables" not in text
    assert text.count("| figure | all depths |") == 1
    page.write_text("no marks")
    with pytest.raises(FledgeError, match="no place for the results"):
        write_page(results, page)

"""The reasons of verdicts in Chinese: every check has its sentence, with the figures of its evidence."""

import re
from dataclasses import replace
from typing import Any

from fledge.evaluate.records import SetResult
from fledge.evaluate.verdict import NOTHING_MEASURED, Reason
from fledge.evaluate.verdict_rules import BOUNDS, FINDINGS, MENDED, StageEvidence, reasons
from fledge.findings import Finding
from fledge.recipe.sections.verdict import VerdictConfig
from fledge.report.reasons import HINTS, MESSAGES, read_reason
from fledge.report.verdicts import SENTENCES
from tests.evaluate.test_verdict import HEALTHY_ROWS, LEARNED, rates

ENGLISH = re.compile(r"[a-z]+ (?:[a-z]+ )+[a-z]+")  # three words in a row


def judged(**evidence: Any) -> list[Reason]:
    """The reasons of a stage on answers."""
    return reasons(StageEvidence(kind="sft", config=VerdictConfig(), **{"validation_rows": 200, **LEARNED, **evidence}))


def of_set(metric: str, before: int, after: int, of: int) -> list[Reason]:
    """The reasons of a stage with one set; `before`, `after`: items whose value is 1."""
    sets = {"sets_before": {"set": rates(metric, before, of)}, "sets_after": {"set": rates(metric, after, of)}}
    return judged(**sets)


def texts(level: float) -> SetResult:
    """A set of texts of so many bits per byte each."""
    one = rates("bits_per_byte", 30, 30, higher=False)
    items = tuple(replace(item, values={"bits_per_byte": level}) for item in one.items)
    return replace(one, kind="text", metrics={"bits_per_byte": replace(one.metrics["bits_per_byte"], value=level)}, items=items)


def all_reasons() -> dict[tuple[str, bool], Reason]:
    """Reasons of every check but the findings, those that decide and those that do not."""
    bad = {name: 0 if key.startswith("min_") else 1 for name, (key, *_) in BOUNDS.items()}
    found = [
        NOTHING_MEASURED,
        *judged(),
        *judged(after={"loss": 3.0, "bits_per_byte": 2.0}),
        *judged(metric="reward", before={"reward": 1.0}, after={"reward": 1.0}, deciding_rows=200),
        *judged(after={"loss": 0.8, "bleu": 0.5}),
        *judged(targets=replace(HEALTHY_ROWS, prompt_targets=900, trained_ends=0, identities=90, misfits=60)),
        *judged(targets=replace(HEALTHY_ROWS, misfits=60, telling=0.0)),
        *(reason for name, value in bad.items() for reason in of_set(name, 0, value * 60, 60)),
        *(reason for name, value in bad.items() for reason in of_set(name, 0, value * 1, 1)),
        *of_set("accuracy", 8, 6, 15),
        *of_set("accuracy", 300, 200, 400),
        *of_set("accuracy", 300, 275, 400),
        *of_set("accuracy", 200, 300, 400),
        *judged(sets_before={"set": texts(1.0)}, sets_after={"set": texts(1.5)}),
    ]
    return {(reason.check, reason.decision is not None): reason for reason in found}


def test_every_reason_has_a_chinese_sentence_with_its_figures_and_no_english():
    found = all_reasons()
    assert {check for check, _ in found} == set(MESSAGES) - set(FINDINGS)
    for (check, _), reason in found.items():
        words = read_reason(reason.as_dict())
        assert words.message.en == reason.message and words.hint.en == reason.hint
        assert words.message.zh.endswith("。") and not ENGLISH.search(words.message.zh), check
        shares = re.findall(r"[+-]?\d+\.\d+%", reason.message)
        assert all(share in words.message.zh for share in shares), (check, words.message.zh)
        assert bool(words.hint.zh) == bool(reason.hint) and not ENGLISH.search(words.hint.zh.replace("fledge data show", "")), (
            check
        )


def test_every_finding_has_a_chinese_sentence_and_says_what_to_do_in_chinese():
    assert {*FINDINGS, "worse_than_best"} <= {*SENTENCES, *MESSAGES}
    assert {*FINDINGS, "worse_than_best", *BOUNDS, *MENDED} <= set(HINTS)
    evidence = {"before": 1.0, "after": 1.0, "steps": 30, "split": "reward"}
    finding = Finding(check="nothing_learned", severity="warning", message="nothing", hint="look", evidence=evidence)
    words = read_reason({"check": finding.check, "message": "nothing", "hint": "look", "evidence": finding.evidence})
    assert "平均奖励" in words.message.zh and "num_generations" in words.hint.zh


def test_a_reason_of_another_version_keeps_its_own_words():
    for reason in ({"check": "of tomorrow"}, {"check": "ended", "evidence": {"set": "a"}}, {"check": "ended", "evidence": 3}):
        words = read_reason({**reason, "message": "something <b>else</b>", "hint": "do it"})
        assert (words.message.en, words.message.zh) == ("something <b>else</b>",) * 2
        assert (words.hint.en, words.hint.zh) == ("do it",) * 2

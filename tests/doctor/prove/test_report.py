"""Proofs on the page of a run, in both languages."""

import json
from pathlib import Path

from fledge.doctor.prove import Proof
from fledge.doctor.prove_effect import compare
from fledge.doctor.prove_yardsticks import YARDSTICKS
from fledge.report.page import render
from fledge.report.proofs import stage_proofs
from fledge.report.records import Problem
from tests.support.report_run import HOSTILE, write_run


def proof(patch: dict[str, object], before: float, after: float, *, identical: bool = False) -> Proof:
    """A proof of three pairs in which every one of 20 documents goes from one loss to another."""
    first, second = ([dict.fromkeys(map(str, range(20)), value)] * 3 for value in (before, after))
    effect = compare(YARDSTICKS["answer_loss"].scale, first, second, identical=identical)
    return Proof(
        name="rate-123456", stage="sft", patch=patch, base={}, cause="learning rate too low", category="learning rate",
        outcome=effect.outcome, effect=effect, beside=(), start="stage", share=1.0, steps=(40, 30), tokens=(4000, 3000),
        seeds=(3, 4, 5), failed=(0, 0), seconds=9.0,
    )  # fmt: skip


def test_proofs_stand_on_the_page_and_a_broken_one_is_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=20)
    folder = run / "sft" / "proofs"
    folder.mkdir()
    shown = proof({"stages.sft.optimizer.learning_rate": 0.01, "x": HOSTILE}, 3.0, 2.0)
    (folder / "a.json").write_text(json.dumps(shown.as_dict()), encoding="utf-8")
    same = proof({"stages.sft.checkpoint.keep_last": 3}, 3.0, 3.0, identical=True)
    (folder / "b.json").write_text(json.dumps(same.as_dict()), encoding="utf-8")
    (folder / "c.json").write_text('{"outcome": "helps"}', encoding="utf-8")
    (folder / "runs").mkdir()
    problems: list[Problem] = []
    rows = stage_proofs(run / "sft", problems)
    assert [row.outcome.en for row in rows] == ["helps", "does not help"] and [row.kind for row in rows] == ["better", ""]
    assert [problem.path for problem in problems] == ["sft/proofs/c.json"]
    assert rows[0].effects[0][1].en == "3.00 → 2.00 nats/token" and rows[0].effects[0][2] == "1.00 [1.00, 1.00]"
    assert rows[1].effects[0][1].en == "the same weights: nothing changes"
    assert rows[0].how.en == "3 pairs from the start of the stage, 40 / 30 updates, 20 held-out documents"
    page = render(run)
    assert "留出答案的损失" in page and "sft/proofs/c.json" in page and HOSTILE not in page


def test_a_proof_is_told_in_sentences() -> None:
    lines = proof({"duration": "30 steps"}, 3.0, 2.0).lines()
    assert lines[0] == "Proved, it helps: duration: 30 steps"
    assert lines[1] == ("loss of held-out answers: 3 → 2 nats/token; better by +1 [+1, +1] over 3 pairs; 0.03 would be useful.")
    assert proof({"duration": "30 steps"}, 2.0, 3.0).lines()[0] == "It makes it worse: duration: 30 steps"

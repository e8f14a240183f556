"""All results of the bench as JSON values: figures of each part, misses, confusions, effects, costs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fledge.diagnosis.thresholds import thresholds_hash
from fledge.doctor_bench.effects import Effect, Place
from fledge.doctor_bench.frozen import frozen_hash
from fledge.doctor_bench.groups import GROUPS
from fledge.doctor_bench.judging import Judgement
from fledge.doctor_bench.records import CaseRecord, plain
from fledge.doctor_bench.right_causes import RIGHT_CAUSES
from fledge.doctor_bench.score import Scored, confusion, misses, said_of, scores, silent_scores

SUMMARY = ("recall", "false_alarms", "top1", "precision", "top3", "abstention")


def results_of(
    judgements: Sequence[Judgement], records: Sequence[CaseRecord], effects: Mapping[Place, Effect]
) -> dict[str, Any]:
    """The results. `summary` has the figures of all cases together, at full depth."""
    full = scores(judgements, effects)
    summary = {name: full.as_dict()[name]["value"] for name in SUMMARY}
    return {
        "thresholds": thresholds_hash(),
        "frozen": frozen_hash() == thresholds_hash(),
        "summary": {**summary, "category_f1": full.as_dict()["category_f1"], "failures": full.failures,
                    "cases": len(judgements)},
        "full": full.as_dict(),
        "curves": scores(judgements, effects, "curves").as_dict(),
        "silent": {name: rate.as_dict() for name, rate in silent_scores(judgements, effects).items()},
        "groups": {name: scores([one for one in judgements if one.case.group == name], effects).as_dict()
                   for name in GROUPS if any(one.case.group == name for one in judgements)},
        "shapes": {name: scores([one for one in judgements if one.case.shape == name], effects).as_dict()
                   for name in sorted({one.case.shape for one in judgements})},
        "counts": _counts(judgements, effects),
        "confusion": {fault: dict(said.most_common()) for fault, said in sorted(confusion(judgements, effects).items())},
        "symptoms": _symptoms(judgements),
        "misses": [_miss(one) for one in misses(judgements, effects)],
        "failures": {one.key: one.failure for one in judgements if one.failure is not None},
        "without_effect": {"/".join(place): plain(vars(effect)) for place, effect in sorted(effects.items())
                           if not effect.is_material},
        "cost": _cost(records),
    }  # fmt: skip


def _counts(judgements: Sequence[Judgement], effects: Mapping[Place, Effect]) -> dict[str, Any]:
    faulty = [one.case for one in judgements if one.case.is_fault]
    healthy = [one.case for one in judgements if not one.case.is_fault]
    return {
        "faulty": len(faulty),
        "healthy": len(healthy),
        "healthy_share": round(len(healthy) / max(1, len(judgements)), 3),
        "fault_classes": len({case.condition for case in faulty}),
        "controls": len({case.condition for case in healthy}),
        "effects_measured": len(effects),
        "most_pairs": max((effect.pairs for effect in effects.values()), default=0),
    }


def _symptoms(judgements: Sequence[Judgement]) -> dict[str, dict[str, int]]:
    """For each symptom that was seen, at full depth, the faults of these runs with their numbers, the commonest first; those of
    healthy runs are under an empty name."""
    found: dict[str, Counter[str]] = {}
    for one in judgements:
        verdict = one.verdicts.get("full")
        for symptom in verdict.seen if verdict is not None else ():
            found.setdefault(symptom, Counter())[one.case.condition if one.case.is_fault else ""] += 1
    return {symptom: dict(found[symptom].most_common()) for symptom in sorted(found)}


def _miss(one: Scored) -> dict[str, Any]:
    case = one.judgement.case
    right = list(RIGHT_CAUSES[case.condition]) if case.is_fault else []
    found = [(cause["cause"], cause["confidence"], cause["severity"]) for cause in one.verdict.causes]
    return {
        "case": case.text,
        "said": said_of(one),
        "right": right,
        "found": found,
        "symptoms": list(one.verdict.symptoms),
        "message": one.verdict.causes[0]["message"] if one.verdict.causes else "",
    }


def _cost(records: Sequence[CaseRecord]) -> dict[str, float]:
    """Median seconds of what was done for a case."""
    names = sorted({name for record in records for name in record.seconds})
    return {name: float(np.median([one.seconds[name] for one in records if name in one.seconds])) for name in names}

"""The order of causes: the root first, what follows from it under it; what nothing explains, and what is missing."""

import json
from typing import Any

import numpy as np
import pytest

from fledge.diagnosis import Cause, Sign, Symptom
from fledge.diagnosis.causes import CAUSES
from fledge.diagnosis.diagnose import diagnose
from fledge.diagnosis.evidence import named, plain, seen
from fledge.diagnosis.measures import MEASURES
from fledge.diagnosis.symptoms import SYMPTOMS
from fledge.findings import Finding
from fledge.training_log import TrainingLog, TrainingSettings
from tests.diagnosis.made_logs import case_of, log_of, pretraining

EMPTY = TrainingLog(source="made", path="", series={})
STRENGTHS = {"certain": 1.0, "likely": 0.7, "possible": 0.4}


def _sign(confidence: Any, severity: Any = "warning", **more: Any) -> Sign:
    finding = Finding(check="", severity=severity, message="so it is", confidence=confidence, **more)
    return Sign(finding=finding, strength=STRENGTHS[confidence])


def _cause(name, confidence, explains=(), rank=50, severity="warning", **more):
    sign = None if confidence is None else _sign(confidence, severity)
    return Cause(name=name, category="data", find=lambda case: sign, explains=frozenset(explains), rank=rank, **more)


def _symptom(name, severity="warning"):
    return Symptom(name=name, find=lambda case: seen("seen", severity=severity))


def _tree(causes, symptoms=()):
    said = diagnose(case_of(EMPTY), causes=causes, symptoms=symptoms)
    return [(one.cause, [finding.check for finding in one.consequences]) for one in said.found], said


def test_what_follows_stands_under_its_root():
    causes = [_cause("b", "certain"), _cause("a", "likely", {"b", "seen"})]
    tree, said = _tree(causes, [_symptom("seen")])
    assert tree == [("a", ["b", "seen"])]
    assert not said.unexplained and not said.is_healthy


def test_a_cause_that_is_only_possible_hides_no_certain_one():
    tree, _ = _tree([_cause("a", "possible", {"b"}), _cause("b", "certain")])
    assert tree == [("b", []), ("a", [])]


def test_roots_over_several_steps():
    tree, _ = _tree([_cause("c", "likely"), _cause("b", "likely", {"c"}), _cause("a", "likely", {"b"})])
    assert tree == [("a", ["c", "b"])] or tree == [("a", ["b", "c"])]


def test_of_two_that_explain_each_other_the_nearer_to_the_root_is_first():
    tree, _ = _tree([_cause("a", "likely", {"b"}, rank=9), _cause("b", "likely", {"a"}, rank=3)])
    assert tree == [("b", ["a"])]


def test_a_ring_of_causes_has_one_root():
    ring = [_cause("a", "likely", {"b"}), _cause("b", "likely", {"c"}), _cause("c", "likely", {"a"})]
    tree, _ = _tree(ring)
    assert len(tree) == 1 and len(tree[0][1]) == 2


def test_the_surer_is_first_and_information_last():
    causes = [_cause("info", "certain", severity="info"), _cause("possible", "possible"), _cause("likely", "likely", rank=60),
              _cause("first", "likely", rank=5), _cause("certain", "certain")]  # fmt: skip
    assert [name for name, _ in _tree(causes)[0]] == ["certain", "first", "likely", "possible", "info"]


def test_symptoms_without_a_cause_are_told():
    tree, said = _tree([], [_symptom("divergence", "error")])
    assert not tree and [one.check for one in said.unexplained] == ["divergence"]
    assert not said.is_healthy


def test_a_possible_cause_makes_no_run_ill_but_a_symptom_does():
    assert _tree([_cause("a", "possible")])[1].is_healthy
    assert _tree([_cause("a", "certain", severity="info")], [_symptom("plateau", "info")])[1].is_healthy
    assert not _tree([_cause("a", "possible", {"x"})], [_symptom("x", "error")])[1].is_healthy


def test_information_covers_no_warning():
    tree, said = _tree([_cause("a", "certain", {"x"}, severity="info")], [_symptom("x")])
    assert tree == [("a", [])] and [one.check for one in said.unexplained] == ["x"]


def test_causes_of_other_kinds_of_stage_are_not_looked_for():
    cause = _cause("a", "certain", kinds=frozenset({"sft"}))
    of_pairs = case_of(log_of(np.ones(3), TrainingSettings(kind="preference")))
    assert not diagnose(of_pairs, causes=[cause], symptoms=()).found
    unknown = case_of(log_of(np.ones(3), TrainingSettings()))
    assert diagnose(unknown, causes=[cause], symptoms=()).found


def test_what_is_missing_is_told_with_the_causes_that_need_it():
    causes = [_cause("a", None, needs=("data/target_share", "eval/loss")), _cause("b", None, needs=("data/target_share",)),
              _cause("c", "certain", needs=("data/vocab_size",))]  # fmt: skip
    _, said = _tree(causes)
    assert dict(said.missing) == {"data/target_share": ("a", "b"), "eval/loss": ("a",)}
    measured = diagnose(case_of(EMPTY, data__target_share=0.5), causes=causes, symptoms=())
    assert "data/target_share" not in measured.missing


def test_what_a_check_asked_for_is_missing_too():
    cause = Cause(name="a", category="data", find=lambda case: case.value("probe/two_passes"))
    said = diagnose(case_of(EMPTY), causes=[cause], symptoms=())
    assert dict(said.missing) == {"probe/two_passes": ("a",)}


def test_a_case_without_evidence_yields_nothing():
    said = diagnose(case_of(EMPTY))
    assert not said.found and not said.unexplained and said.is_healthy
    assert said.missing


def test_evidence_becomes_json():
    finding = named(
        seen("x", evidence={"a": np.float64(1.23456789), "b": None, "c": (np.int64(3), float("nan")), "d": {"e": 1}}), "x"
    )
    assert json.loads(json.dumps(finding.as_dict()))["evidence"] == {"a": 1.23457, "c": [3.0, None], "d": {"e": 1}}
    assert plain({"a": float("inf"), "b": True}) == {"b": True}


def test_a_real_diagnosis_is_json():
    log = pretraining(np.random.default_rng(0), 400, learning_rate=0.9)
    said = diagnose(case_of(log))
    assert said.found
    assert json.loads(json.dumps([one.as_dict() for one in said.found], allow_nan=False))


def test_names_are_different_and_those_that_follow_exist():
    names = [one.name for one in (*CAUSES, *SYMPTOMS)]
    assert len(set(names)) == len(names)
    unknown = {(cause.name, name) for cause in CAUSES for name in cause.explains if name not in names}
    assert not unknown


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.name)
def test_what_causes_need_can_be_measured_or_logged(cause):
    logged = ("train/", "eval/", "system/", "router/", "update_ratio/", "grad_noise/", "prompt_tests/")
    assert all(name in MEASURES or name.startswith(logged) for name in cause.needs)

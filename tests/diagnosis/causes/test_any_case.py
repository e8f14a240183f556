"""Whatever is known of a run: no cause raises, and what it says is whole."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.diagnosis import Case
from fledge.diagnosis import causes as all_causes
from fledge.diagnosis.cause import Sign
from fledge.diagnosis.causes.signs import CONFIDENCES, count
from fledge.diagnosis.measures import MEASURES
from fledge.diagnosis.symptoms import SYMPTOMS
from fledge.training_log import Series, TrainingLog, TrainingSettings
from tests.diagnosis.causes.made_cases import CAUSES, HEALTHY, LOGS, SETTINGS, healthy, made, ramp

SERIES = sorted({name for log in LOGS.values() for name in log} | {"train/tokens", "train/target_tokens", "update_ratio/norm"})
ODD = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -1.0, 1e9, True, False, "text", [], {}, None])
NUMBERS = st.one_of(st.floats(0, 1), st.floats(-10, 10), st.integers(0, 2000))
VALUES = st.one_of(NUMBERS, ODD, st.lists(NUMBERS | ODD, max_size=4), st.lists(st.sampled_from(["a.lora_A", "b.lora_B", "c"])))
POINTS = st.one_of(
    st.lists(st.one_of(st.floats(-5, 5), st.sampled_from([math.nan, math.inf, 0.0])), min_size=1, max_size=40),
    st.builds(ramp, st.floats(0, 4), st.floats(0, 4), st.integers(1, 90)),
)
OPTIONAL = {
    "kind": st.sampled_from([None, "pretrain", "sft", "preference", "kto", "reward", "grpo"]),
    "method": st.sampled_from([None, "full", "lora", "qlora"]),
    "initial": st.sampled_from([None, "fresh", "trained"]),
    "loss_type": st.sampled_from([None, "sigmoid", "robust", "sigmoid_norm", "hinge", "ipo", "simpo", "orpo", "another"]),
    **{
        name: st.sampled_from([None, 0.0, 0.001, 0.1, 1.0, 2.0, 128.0, 1e6])
        for name in (
            "beta",
            "dropout",
            "context",
            "vocab_size",
            "parameters",
            "trained_parameters",
            "learning_rate",
            "processes",
        )
    },
    "accumulation_steps": st.sampled_from([None, 1.0, 4.0]),
    "num_generations": st.sampled_from([None, 8.0]),
    "other": st.dictionaries(
        st.sampled_from(
            ["pad_token_id", "eos_token_id", "label_smoothing", "train_on_turns", "sft_loss_weight", "max_new_tokens"]
        ),
        st.sampled_from([0, 2, 0.3, "last", None]),
        max_size=4,
    ),
}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A random subset of figures, series and settings, with values that are plausible, odd, or none."""
    figures = draw(st.dictionaries(st.sampled_from(sorted(MEASURES)), VALUES, max_size=40))
    log = draw(st.dictionaries(st.sampled_from(SERIES), POINTS, max_size=12))
    first = draw(st.sampled_from([0, 1, 10, 500]))
    series = {
        name: Series(np.arange(first, first + len(values), dtype=np.float64), np.asarray(values, dtype=np.float64))
        for name, values in log.items()
    }
    chosen = TrainingSettings(**{name: draw(values) for name, values in OPTIONAL.items()})
    events = draw(
        st.lists(st.fixed_dictionaries({"kind": st.just("crash"), "text": st.text(max_size=20) | st.none()}), max_size=2)
    )
    case = Case(log=TrainingLog(source="", path="", series=series, settings=chosen, events=tuple(events)))
    for name, value in figures.items():
        case.add(MEASURES[name].depth, {name: value})
    return case


def is_whole(name: str, sign: Sign) -> None:
    """A sign says all that it must, without holes in its sentences."""
    finding = sign.finding
    assert finding.check == name
    assert finding.confidence in CONFIDENCES
    assert 0 < sign.strength <= 1
    for text in (finding.message, finding.hint, sign.proof):
        assert text and text == text.strip()
        assert not {"nan", "None", "inf"} & set(text.replace("%", " ").replace(",", " ").split())
    assert all(sign.alternatives.values())
    assert finding.patch is None or all(key.count(".") >= 1 and value is not None for key, value in finding.patch.items())


@settings(max_examples=150)
@given(cases())
def test_no_cause_raises(case: Case) -> None:
    for name, cause in CAUSES.items():
        sign = cause.find(case)
        if sign is not None:
            is_whole(name, sign)


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(LOGS)), st.sets(st.sampled_from(sorted(HEALTHY))), st.sets(st.sampled_from(SERIES)), st.booleans()
)
def test_a_part_of_a_healthy_run_is_silent(kind: str, without: set[str], unlogged: set[str], has_settings: bool) -> None:
    """Figures that are missing make no cause likely; without the others, one may become possible."""
    figures: dict[str, Any] = {name: value for name, value in HEALTHY.items() if name not in without}
    log = {name: values for name, values in LOGS[kind].items() if name not in unlogged}
    case = made(figures, log, kind=kind, **(SETTINGS if has_settings else {}))
    for name, cause in CAUSES.items():
        sign = cause.find(case) if not cause.kinds or kind in cause.kinds else None
        assert sign is None, name


def test_an_empty_case_says_nothing_and_asks_for_figures() -> None:
    case = made()
    assert [name for name, cause in CAUSES.items() if cause.find(case) is not None] == []
    assert len(case.wanted) > 50


def test_every_entry_is_whole() -> None:
    names = [cause.name for cause in all_causes.CAUSES]
    known = set(names) | {symptom.name for symptom in SYMPTOMS}
    assert len(names) == len(set(names))
    for name, cause in CAUSES.items():
        assert set(cause.needs) <= set(MEASURES), name
        assert cause.explains <= known, (name, cause.explains - known)
        assert name not in cause.explains


def test_evidence_is_json_and_alternatives_are_causes_or_say_that_nothing_is_wrong() -> None:
    names = {cause.name for cause in all_causes.CAUSES}
    innocent = (
        "nothing is wrong",
        "only the last answers",
        "the sources are meant",
        "rows are grouped",
        "there are few classes",
        "a part is frozen",
        "rejected answers are the model's own",
    )
    signs = [sign for case in _faulty() for cause in CAUSES.values() if (sign := cause.find(case)) is not None]
    assert len(signs) > 40
    for sign in signs:
        assert json.loads(json.dumps(sign.finding.as_dict()))
        for other in sign.alternatives:
            assert other in names or other.startswith(innocent), (sign.finding.check, other)


def _faulty() -> list[Case]:
    """Cases in which each figure in turn is far off."""
    far: list[Any] = [0.0, 1.0, 5.0, ["a.lora_B", "c"]]
    return [healthy(kind, {name: value}) for kind in ("sft", "preference", "grpo") for name in HEALTHY for value in far]


@pytest.mark.parametrize(
    ("value", "counted"),
    [
        ([], (0, ())),
        (["b", "a"], (2, ("a", "b"))),
        ({"a": 1, "b": 2}, (2, ("a", "b"))),
        ([7, "a", "", None, math.nan, True], (2, ("7", "a"))),
        ([math.nan, None], None),
        (3.0, (3, ())),
        (math.nan, None),
    ],
)
def test_only_names_are_counted_as_names(value: Any, counted: Any) -> None:
    assert count(made({"data/control_tokens_split": value}), "data/control_tokens_split") == counted

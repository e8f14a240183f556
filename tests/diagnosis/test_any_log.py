"""No log and no settings, however strange, make the doctor fail; what it says is JSON."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.diagnosis.diagnose import diagnose
from fledge.training_log import TrainingLog, TrainingSettings
from fledge.training_log.records import Series
from tests.diagnosis.made_logs import HEALTHY, case_of

NAMES = (
    "train/loss", "train/epoch_loss", "train/lr", "train/grad_norm", "train/epoch", "train/tokens", "train/clip_fraction",
    "train/loss_scale", "train/skipped_steps", "eval/loss", "train/rewards/margins", "train/rewards/accuracies",
    "train/logps/chosen", "train/reward", "train/kl", "train/entropy", "train/completions/mean_length",
    "train/completions/clipped_ratio", "train/frac_reward_zero_std", "update_ratio/attention", "update_ratio/embed",
    "grad_noise/scale", "router/max_load", "system/step_seconds", "system/step_tokens_per_second", "system/phases/data",
    "system/memory_bytes",
)  # fmt: skip
WORDS = {
    "kind": [None, "pretrain", "sft", "preference", "kto", "reward", "grpo", "other"],
    "initial": [None, "fresh", "trained"], "method": [None, "full", "lora"], "schedule": [None, "cosine", "linear", "wsd"],
    "precision": [None, "fp16", "bf16"], "optimizer": [None, "adamw", "muon", "lion"], "loss_type": [None, "sigmoid"],
}  # fmt: skip
NUMBERS = [one.name for one in fields(TrainingSettings) if one.name not in (*WORDS, "other", "origin")]
VALUES = st.one_of(st.floats(width=32), st.floats(0, 10, width=32), st.just(0.0), st.just(1.0))
EVENTS = [
    {"kind": "startup", "step": 30}, {"kind": "crash", "text": "CUDA out of memory"}, {"kind": "stop", "step": 9},
    {"kind": "guard", "step": 5, "evidence": {"lr_factor": 0.5}}, {"kind": "guard", "evidence": None},
]  # fmt: skip


@st.composite
def logs(draw):
    """A log of some columns of any numbers with gaps, and some settings."""
    size = draw(st.integers(0, 80))
    steps = np.cumsum(draw(st.lists(st.integers(0, 5), min_size=size, max_size=size))) * 1.0
    series = {}
    for name in draw(st.sets(st.sampled_from(NAMES), max_size=8)):
        values = np.array(draw(st.lists(VALUES, min_size=size, max_size=size)), float)
        keep = slice(None, None, draw(st.integers(1, 3)))
        series[name] = Series(steps[keep], values[keep])
    words = {name: draw(st.sampled_from(choices)) for name, choices in WORDS.items()}
    numbers = {
        name: draw(st.one_of(st.none(), st.floats(0, 1e6, width=32))) for name in draw(st.sets(st.sampled_from(NUMBERS)))
    }
    return TrainingLog(
        source=draw(st.sampled_from(["run of fledge", "CSV"])), path="", series=series,
        settings=TrainingSettings(**words, **numbers), ended=draw(st.sampled_from([None, True, False])),
        events=tuple(draw(st.lists(st.sampled_from(EVENTS), max_size=3))),
        step_unit=draw(st.sampled_from(["update", "epoch", "record", "unknown"])),
    )  # fmt: skip


def _is_said_in_json(log):
    """Whether the log is diagnosed, and what is said of it is JSON without numbers that are none."""
    with np.errstate(all="ignore"):
        said = diagnose(case_of(log))
    findings = [one.as_dict() for one in (*said.found, *said.unexplained)]
    return len(json.loads(json.dumps(findings, allow_nan=False))) == len(findings)


@settings(max_examples=120)
@given(logs())
def test_no_log_makes_it_fail(log):
    assert _is_said_in_json(log)


@pytest.mark.parametrize("number", [1e-38, 0.3, 1e38])
@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_of_the_settings_makes_it_fail(name, number):
    log = HEALTHY["pretraining"](np.random.default_rng(3))
    assert _is_said_in_json(replace(log, settings=replace(log.settings, **{name: number})))


@pytest.mark.parametrize("name", HEALTHY)
def test_no_beginning_of_a_healthy_run_is_an_alarm(name):
    log = HEALTHY[name](np.random.default_rng(3))
    last = max(one.steps[-1] for one in log.series.values())
    for share in (0.02, 0.1, 0.3, 0.6):
        cut = {key: one.between(0, share * last) for key, one in log.series.items()}
        begun = TrainingLog(source=log.source, path="", series=cut, settings=log.settings, stage=log.stage, ended=None)
        assert diagnose(case_of(begun)).is_healthy

"""Which of several findings stands at the root, and that what a fault leaves behind stands under it."""

import math
from dataclasses import replace
from typing import Any

import pytest

from fledge.diagnosis import Case, Diagnoses
from fledge.diagnosis.diagnose import diagnose
from tests.diagnosis.causes.made_cases import HEALTHY, LANGUAGE_LOG, SETTINGS, fall, healthy, made, ramp

SUMMED, STATE_LOST = "logged loss summed over accumulation", "resumed without optimizer state"


def _said(case: Case) -> Diagnoses:
    return diagnose(case)


def _roots(case: Case) -> list[str]:
    """The causes that are at least likely, the first one first."""
    return [one.cause for one in _said(case).found if one.sign.finding.confidence != "possible"]


def _run(kind: str = "sft", figures: Any = None, log: Any = None, events: Any = (), **settings: Any) -> Case:
    """A healthy run that is done, with other figures, series, events and settings."""
    at_hand = {**HEALTHY, **(figures or {})}
    columns = {name: values for name, values in {**LANGUAGE_LOG, **(log or {})}.items() if values is not None}
    settings = {"kind": kind, "steps": 200.0, **SETTINGS, "vocab_size": 800.0, **settings}
    case = made({name: value for name, value in at_hand.items() if value is not None}, columns, events, **settings)
    case.log = replace(case.log, step_unit="update")
    return case


CRASH = ({"kind": "crash", "text": "the gradient is not finite in 3 updates in a row", "step": 200},)


def test_an_error_that_ends_a_log_is_no_root_where_a_cause_is_known() -> None:
    assert _roots(_run(events=CRASH)) == ["stopped by an error"]
    masked = _run(figures={"data/answer_supervised_share": 0.06}, events=CRASH)
    assert _roots(masked)[0] == "everything masked"
    other = _run(figures={"data/identity_share": 0.3, "probe/identity_answers": 0.6}, events=CRASH)
    assert _roots(other) == ["identity rows dominate", "stopped by an error"]  # certain, and yet behind what is likely


def test_numbers_that_are_none_to_the_end_are_told_before_the_tensors_that_they_stop() -> None:
    lost = [*fall(4.0, 1.5, 197), math.nan, math.nan, math.nan]
    still = {"probe/unchanged_tensors": ["norm.weight", "embed_tokens.weight"]}
    broken = _run(figures=still, log={"train/loss": lost, "train/grad_norm": lost}, events=CRASH)
    assert _roots(broken)[0] == "no finite numbers"
    goes_on = [*fall(4.0, 1.5, 150), math.nan, *fall(1.5, 1.4, 49)]
    assert _roots(_run(log={"train/loss": goes_on}))[0] == "bad numbers in single rows"


def test_overflow_explains_tensors_that_stand_still() -> None:
    halved = [65536.0 / 2**step for step in range(200)]
    log = {"train/loss_scale": halved, "train/skipped_steps": ramp(0, 190), "train/grad_norm": [2.0] * 20 + [math.nan] * 180}
    case = _run(figures={"probe/unchanged_tensors": ["norm.weight"]}, log=log, precision="fp32")
    assert _roots(case)[0] == "fp16 overflow"


def test_one_answer_in_most_rows_is_no_duplicate() -> None:
    alike = {"data/largest_answer_share": 0.6, "data/repeated_ngrams": 0.7, "probe/equal_answers": 0.9}
    assert _roots(_run(figures={**alike, "probe/training_loss": 1.2, "probe/validation_loss": 1.6}))[0] == "answers all equal"
    copies = {"data/duplicate_share": 0.9, "data/largest_answer_share": 0.3, "data/repeated_ngrams": 0.9}
    assert _roots(_run(figures=copies))[0] == "duplicated data"


def test_a_logged_loss_beside_the_same_loss_measured_again() -> None:
    double = {"train/loss": [2 * loss for loss in fall(4.0, 1.0)]}
    assert SUMMED in _roots(_run(log=double, figures={"probe/training_loss": 1.1}))
    right = _run(log={"eval/loss": fall(7.0, 2.2, 10)}, figures={"probe/training_loss": 1.1})
    assert SUMMED not in _roots(right)  # validation rows are harder, and the training loss is what it should be
    before = _run(log={"train/loss": [8.0, 7.8, 7.7], "eval/loss": None}, figures={"probe/training_loss": 4.0})
    before.probed_step = 0
    assert SUMMED in _roots(before)
    for losses in ([2.0, 3.1, 4.2, 3.5, 3.9], [2.0, 2.0], [7.7, 4.1, 3.8, 4.4, 3.9]):  # single batches are easy or hard
        first = _run(log={"train/loss": losses, "eval/loss": None}, figures={"probe/training_loss": 4.0})
        first.probed_step = 0
        assert SUMMED not in _roots(first)
    by_heart = _run(log={"train/loss": fall(4.0, 0.05)}, figures={"probe/training_loss": 0.05})
    assert SUMMED not in _roots(by_heart)


def test_weights_of_the_start_are_not_judged_by_the_updates_of_the_log() -> None:
    figures = {"probe/adapter_b_norm": 0.0}
    log = {name: list(values)[:40] for name, values in LANGUAGE_LOG.items()}
    case = _run(figures=figures, log=log, method="lora")
    assert "adapter never updates" in _roots(case)
    start = _run(figures=figures, log=log, method="lora")
    start.probed_step = 0
    assert "adapter never updates" not in _roots(start)


@pytest.mark.parametrize(("share", "is_told"), [(0.0, True), (0.5, True), (1.0, False), (None, False)])
def test_an_optimizer_state_that_does_not_come_back(share: float | None, is_told: bool) -> None:
    said = [one for one in _said(_run(figures={"probe/restored_state": share})).found if one.cause == STATE_LOST]
    assert [one.sign.finding.confidence for one in said] == (["certain"] if is_told else [])


@pytest.mark.parametrize(("factor", "is_told"), [(1.0, False), (0.5, False), (5.0, True), (0.1, True)])
def test_a_rate_that_a_guard_lowered_is_compared_with_what_it_lowered_it_to(factor: float, is_told: bool) -> None:
    lowered = ({"kind": "guard", "step": 0, "check": "divergence", "evidence": {"lr_factor": 0.5}},)
    rates = [factor * 1e-3] * 200
    case = _run(log={"train/lr": rates}, events=lowered, learning_rate=1e-3, warmup_steps=2.0)
    assert ("learning rate not as planned" in [one.cause for one in _said(case).found]) is is_told


@pytest.mark.parametrize(
    ("decay", "initial", "is_told"),
    [(10.0, "trained", True), (0.1, "trained", False), (10.0, "fresh", False), (60.0, "fresh", True)],
)
def test_a_decay_shrinks_trained_weights_sooner(decay: float, initial: str, is_told: bool) -> None:
    case = _run(log={"train/lr": [5e-4] * 200}, weight_decay=decay, initial=initial, learning_rate=5e-4)
    assert ("weight decay too strong" in [one.cause for one in _said(case).found]) is is_told


def test_answers_that_are_cut_explain_rewards_that_are_all_alike() -> None:
    log = {"train/reward": [1.0] * 60, "train/reward_std": [0.0] * 60, "train/frac_reward_zero_std": [1.0] * 60}
    cut = healthy("grpo", log={**log, "train/completions/clipped_ratio": [1.0] * 60})
    assert _roots(cut)[0] == "completions truncated"
    assert _roots(healthy("grpo", log=log))[0] == "reward constant"


def test_a_reward_that_falls_while_it_is_trained() -> None:
    noisy = [0.02 * (-1) ** step for step in range(60)]
    fell = [reward + noise for reward, noise in zip(ramp(0.9, 0.3, 60), noisy, strict=True)]
    unmeasured = {"probe/advantage_alignment": None}
    cut = {"train/completions/clipped_ratio": ramp(0.3, 1.0, 60)}
    told = _roots(healthy("grpo", unmeasured, {"train/reward": fell, **cut}, learning_rate=None))
    assert told == ["groups wrongly formed"]
    stays = [0.5 + noise for noise in noisy]
    assert "groups wrongly formed" not in _roots(healthy("grpo", unmeasured, {"train/reward": stays}, learning_rate=None))


def _preferring(case: Case) -> list[str]:
    return [one.cause for one in _said(case).found if one.category == "preferences" and one.sign.finding.severity != "info"]


def test_swapped_pairs_and_pairs_that_were_chosen_by_length() -> None:
    longer = {"train/length_correlation": ramp(0.3, 0.6), "train/rewards/accuracies_shorter": [0.3] * 200}
    doubted = {"train/logps/chosen": [-44.0] * 200, "train/logps/rejected": [-40.0] * 200}
    unknown = {"data/wrong_side": None}
    swapped = healthy("preference", {**unknown, "data/chosen_longer_text": 0.65}, {**longer, **doubted})
    assert _preferring(swapped) == ["chosen and rejected swapped"]
    by_rule = healthy("preference", {**unknown, "data/chosen_longer_text": 1.0}, {**longer, **doubted})
    assert _preferring(by_rule) == ["length bias in preferences"]


def test_an_edited_template_is_no_damage() -> None:
    damage = {"probe/files_damaged": ["step-9: model/chat_template.jinja has 12 bytes, its manifest says 14"]}
    assert _roots(_run(figures={**damage, "data/template_differs": 1.0})) == ["template differs in serving"]
    weights = {"probe/files_damaged": ["step-9: model/model.safetensors is cut"]}
    assert _roots(_run(figures=weights)) == ["checkpoint damaged"]


@pytest.mark.parametrize(
    ("positions", "initial", "patch"),
    [
        (None, "trained", {"stages.stage.data.max_seq_len": 256}),
        (200, "trained", {"stages.stage.data.max_seq_len": 200}),
        (128, "trained", None),
        (128, "fresh", {"stages.stage.data.max_seq_len": 256, "model.max_position_embeddings": 256}),
    ],
)
def test_a_longer_context_is_one_that_the_model_has(positions: int | None, initial: str, patch: Any) -> None:
    other = {} if positions is None else {"max_position_embeddings": positions}
    case = healthy("sft", {"data/truncated_share": 0.6}, other=other, initial=initial)
    signs = [one.sign for one in _said(case).found if one.cause == "context cuts answers"]
    assert [sign.finding.patch for sign in signs] == [patch]

"""Causes that are told from the log of a run, beside its figures or alone."""

from typing import Any

import pytest

from fledge.diagnosis.diagnose import add_own_figures
from tests.diagnosis.causes.made_cases import (
    HEALTHY,
    LN2,
    LOGS,
    SETTINGS,
    all_found,
    found,
    healthy,
    made,
    ramp,
)


def alone(kind: str, log: dict[str, Any], **settings: Any) -> Any:
    """A case with nothing but the log of a healthy run, a part of it changed, and the kind of stage."""
    series = {name: values for name, values in {**LOGS[kind], **log}.items() if values is not None}
    return made({}, series, **{"kind": kind, **settings})


def confidence(name: str, case: Any) -> str | None:
    sign = found(name, case)
    return None if sign is None else sign.finding.confidence


@pytest.mark.parametrize("kind", list(LOGS))
def test_the_log_of_a_healthy_run_is_silent(kind: str) -> None:
    assert all_found(alone(kind, {})) == []
    assert all_found(alone(kind, {}, **SETTINGS)) == []
    assert all_found(made({}, {}, kind=kind)) == []


def test_no_target_in_the_log() -> None:
    masked = alone("sft", {"train/target_tokens": [0.0] * 200, "train/tokens": ramp(1e3, 2e5)})
    assert all_found(masked) == ["everything masked"]
    assert all_found(alone("sft", {"train/target_tokens": ramp(5e2, 1e5), "train/tokens": ramp(1e3, 2e5)})) == []


def test_groups_of_matrices_without_updates() -> None:
    sign = found("tensors that do not learn", alone("sft", {"update_ratio/mlp": [0.0] * 20}))
    assert sign is not None and "update_ratio/mlp" in sign.finding.message and sign.steps == (1, 20)
    still = {"update_ratio/mlp": [0.0] * 20, "update_ratio/attention": [0.0] * 20}
    assert all_found(alone("sft", still)) == []  # a rate of 0: nothing moves


def test_full_training_of_a_part() -> None:
    assert confidence("tensors that do not learn", healthy("sft", trained_parameters=5e5)) == "likely"
    frozen = healthy("sft", trained_parameters=5e5, other={"freeze_layers": 2})
    assert confidence("tensors that do not learn", frozen) == "possible"
    assert confidence("tensors that do not learn", healthy("sft", trained_parameters=5e5, method="lora")) is None


def test_an_adapter_of_zeros() -> None:
    case = healthy("sft", {"probe/adapter_b_norm": 0.0}, method="lora", trained_parameters=1e4)
    assert all_found(case) == ["adapter never updates"]
    soon = healthy("sft", {"probe/adapter_b_norm": 0.0}, {"train/loss": ramp(3, 2.5, 10)}, method="lora")
    assert confidence("adapter never updates", soon) is None
    still = {"probe/unchanged_tensors": ["layers.0.q_proj.lora_B", "layers.1.q_proj.lora_B"]}
    assert confidence("adapter never updates", healthy("sft", still, method="lora")) == "certain"
    assert confidence("adapter never updates", healthy("sft", still, method="full")) is None


@pytest.mark.parametrize(
    ("least", "most", "expected"),
    [(0.0, 3.5, "likely"), (0.04, 2.0, "likely"), (0.12, 2.0, "possible"), (0.3, 2.0, None), (0.0, 1.2, None)],
)
def test_loads_of_experts(least: float, most: float, expected: str | None) -> None:
    log = {"router/min_load": ramp(1.0, least)[:150] + [least] * 50, "router/max_load": ramp(1.0, most)[:150] + [most] * 50}
    assert confidence("experts collapsed", alone("pretrain", log)) == expected
    early = {name: values[-40:] for name, values in log.items()}
    assert confidence("experts collapsed", alone("pretrain", {**early, "train/loss": ramp(6, 5, 40)})) is None


# -- preferences ----------------------------------------------------------------------------------------------------------


def test_cross_entropy_in_the_log() -> None:
    loss = ramp(2.0, 1.2)
    equal = {"train/loss": loss, "train/sft_loss": loss, "train/rewards/margins": ramp(0.0, 0.01)}
    assert confidence("cross-entropy instead of preferences", alone("preference", equal)) == "certain"
    rising = {**equal, "train/sft_loss": None, "train/logps/chosen": ramp(-40, -25)}
    assert confidence("cross-entropy instead of preferences", alone("preference", rising)) == "likely"
    assert confidence("wrong reference", alone("preference", rising)) is None
    for mixed in ({"loss_type": "orpo"}, {"other": {"sft_loss_weight": 1.0}}, {"loss_type": "simpo"}):
        assert all_found(alone("preference", equal, **mixed)) == []


@pytest.mark.parametrize(
    ("margin", "loss", "dropout", "expected"),
    [
        (0.5, 0.48, 0.0, "likely"),
        (-0.5, 0.97, 0.0, "likely"),
        (0.05, 0.67, 0.0, "possible"),
        (0.0, 0.80, 0.0, "likely"),
        (0.0, LN2, 0.0, None),
        (0.05, 0.67, 0.1, None),  # dropout makes the policy differ from its reference
        (0.5, 0.48, 0.1, "likely"),
    ],
)
def test_a_first_update_beside_the_reference(margin: float, loss: float, dropout: float, expected: str | None) -> None:
    log = {"train/rewards/margins": [margin, *ramp(margin, 2.0, 199)], "train/loss": [loss, *ramp(loss, 0.3, 199)]}
    case = alone("preference", log, dropout=dropout, loss_type="sigmoid")
    assert confidence("wrong reference", case) == expected


def test_a_first_loss_of_an_unknown_kind_is_no_sure_sign_of_a_wrong_reference() -> None:
    log = {"train/rewards/margins": [0.0, *ramp(0.0, 2.0, 199)], "train/loss": [25.0, *ramp(25.0, 20.0, 199)]}
    assert confidence("wrong reference", alone("preference", log)) == "possible"  # the loss of IPO, for example
    assert confidence("wrong reference", alone("preference", log, loss_type="sigmoid")) == "likely"


def test_pairs_of_equal_answers_are_no_moving_reference() -> None:
    still = {"train/rewards/margins": [0.0] * 200, "train/loss": [LN2] * 200, "train/grad_norm": [2e-8] * 200}
    equal = {**still, "train/logps/rejected": LOGS["preference"]["train/logps/chosen"]}
    assert confidence("pairs equal or contradicting", alone("preference", equal)) == "likely"
    assert confidence("reference moves with the policy", alone("preference", equal)) is None
    assert confidence("pairs equal or contradicting", alone("preference", still)) is None


def test_a_resumed_run_does_not_begin_at_its_reference() -> None:
    case = alone("preference", {})
    late = {name: one.between(100, 200) for name, one in case.log.series.items()}
    resumed = made({}, {}, kind="preference")
    resumed.log = type(case.log)(source="made up", path="", series=late, settings=case.log.settings)
    assert all_found(resumed) == []


def test_a_reference_that_moves() -> None:
    still = {"train/rewards/margins": [0.0] * 200, "train/loss": [LN2] * 200, "train/rewards/accuracies": [0.0] * 200}
    assert confidence("reference moves with the policy", alone("preference", still)) == "likely"
    moved = healthy("preference", {"probe/reference_moved": 0.4}, still)
    assert confidence("reference moves with the policy", moved) == "certain"
    assert confidence("wrong reference", moved) is None
    ignored = healthy("preference", {"probe/preference_loss_slope": 0.0, "probe/beta_effect": 0.0}, still)
    assert confidence("reference moves with the policy", ignored) == "certain"
    assert confidence("beta is zero", ignored) is None
    assert all_found(alone("preference", {**still, "train/lr": [0.0] * 200})) == []  # the rate is 0
    first = {name: values[:15] for name, values in {**LOGS["preference"], **still}.items()}
    assert confidence("reference moves with the policy", alone("preference", first)) is None


def test_beta_of_zero() -> None:
    still = {"train/rewards/margins": [0.0] * 200, "train/loss": [LN2] * 200, "train/grad_norm": [0.0] * 200}
    assert confidence("beta is zero", alone("preference", still)) == "likely"
    assert confidence("reference moves with the policy", alone("preference", still)) is None
    ignored = healthy("preference", {"probe/preference_loss_slope": 0.0, "probe/beta_effect": 0.0}, still)
    assert confidence("beta is zero", ignored) == "likely"
    set_to_zero = alone("preference", {}, beta=0.0)
    assert confidence("beta is zero", set_to_zero) == "certain"
    sign = found("beta is zero", set_to_zero)
    assert sign is not None and sign.finding.patch == {"stages.stage.beta": 0.1}


@pytest.mark.parametrize(
    ("beta", "loss_type", "small", "large"),
    [
        (0.1, "sigmoid", None, None),
        (0.5, "sigmoid", None, None),
        (0.01, "sigmoid", None, None),
        (0.005, "sigmoid", "possible", None),
        (0.001, "sigmoid", "likely", None),
        (1.0, "sigmoid", None, "possible"),
        (5.0, "sigmoid", None, "likely"),
        (5.0, "simpo", None, None),
        (0.05, "simpo", "likely", None),
        (0.01, "ipo", None, None),
    ],
)
def test_beta_beside_its_loss(beta: float, loss_type: str, small: str | None, large: str | None) -> None:
    case = made({}, {}, kind="preference", beta=beta, loss_type=loss_type)
    assert (confidence("beta too small", case), confidence("beta too large", case)) == (small, large)


def test_a_loss_that_prefers_the_rejected() -> None:
    wrong = {"train/rewards/accuracies": ramp(0.5, 0.05), "train/rewards/margins": ramp(0.0, -2.0)}
    assert confidence("chosen and rejected swapped", alone("preference", wrong)) == "likely"
    start = {"train/logps/chosen": ramp(-33, -55), "train/logps/rejected": ramp(-30, -45)}
    assert confidence("chosen and rejected swapped", alone("preference", start)) == "possible"
    much = {"train/logps/chosen": ramp(-60, -55), "train/logps/rejected": ramp(-30, -45)}
    assert confidence("chosen and rejected swapped", alone("preference", much)) == "likely"
    assert confidence("chosen and rejected swapped", alone("kto", much)) == "likely"
    assert confidence("chosen and rejected swapped", healthy("preference", log=start)) is None  # the data says otherwise


def test_few_pairs_that_happen_to_be_wrong_are_not_swapped() -> None:
    def judged(pattern: list[float]) -> str | None:
        log = {"train/rewards/accuracies": pattern * (40 // len(pattern)), "train/rewards/margins": [-0.12] * 40}
        case = alone("preference", log)
        add_own_figures(case)
        return confidence("chosen and rejected swapped", case)

    assert judged([0.0, 1.0, 0.0, 0.5, 0.5]) is None  # 40 % of some pairs, by chance
    assert judged([0.1, 0.2, 0.1, 0.2, 0.1]) == "likely"


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [(-0.6, -1.0, "likely"), (-0.3, -1.0, "possible"), (-0.1, -1.0, None), (-0.6, 0.2, None)],
)
def test_displacement(chosen: float, rejected: float, expected: str | None) -> None:
    log = {"train/drift/chosen": ramp(0, chosen)[:150] + [chosen] * 50, "train/drift/rejected": [rejected] * 200}
    assert confidence("likelihood displacement", alone("preference", log)) == expected


def test_displacement_by_sums() -> None:
    log = {"train/drift/chosen": None, "train/drift/rejected": None}
    assert confidence("likelihood displacement", alone("preference", log)) is None
    fallen = {**log, "train/logps/chosen": ramp(-40, -80), "train/logps/rejected": ramp(-45, -120)}
    assert confidence("likelihood displacement", alone("preference", fallen)) == "likely"


def test_length_bias() -> None:
    log = {"train/length_correlation": ramp(0.2, 0.8), "train/rewards/accuracies_shorter": ramp(0.5, 0.2)}
    assert confidence("length bias in preferences", alone("preference", log)) == "likely"
    right = {**log, "train/rewards/accuracies_shorter": ramp(0.5, 0.8)}
    assert confidence("length bias in preferences", alone("preference", right)) is None


def test_over_optimised() -> None:
    log = {"train/rewards/margins": ramp(0, 40), "eval/loss": [0.6, 0.4, 0.5, 0.7]}
    assert confidence("preferences over-optimised", alone("preference", log)) == "likely"
    assert confidence("preferences over-optimised", alone("preference", {"train/rewards/margins": ramp(0, 40)})) == "possible"
    assert confidence("preferences over-optimised", alone("preference", {"train/rewards/margins": ramp(0, 6)})) is None


# -- rewards --------------------------------------------------------------------------------------------------------------


def test_constant_rewards() -> None:
    log = {
        "train/reward": [0.0] * 60,
        "train/reward_std": [0.0] * 60,
        "train/frac_reward_zero_std": [1.0] * 60,
        "eval/exact_match": [0.4] * 6,
        "train/entropy": ramp(0.6, 0.6, 60),
    }
    assert all_found(alone("grpo", log)) == ["reward constant", "groups without variance"]


@pytest.mark.parametrize(
    ("first", "last", "reward", "expected"),
    [(1.0, 0.99, 0.31, "certain"), (0.9, 0.9, 0.31, "likely"), (0.75, 0.8, 0.31, "possible"), (0.2, 1.0, 0.31, None),
     (0.9, 0.95, 0.9, "possible"), (0.5, 0.5, 0.31, None)],
)  # fmt: skip
def test_equal_groups(first: float, last: float, reward: float, expected: str | None) -> None:
    log = {"train/frac_reward_zero_std": [first] * 30 + [last] * 30, "train/reward": ramp(0.3, reward, 60)}
    assert confidence("groups without variance", alone("grpo", log)) == expected


def test_groups_of_other_prompts_by_the_log() -> None:
    log = {
        "train/completions/unique_fraction": [1.0] * 60,
        "train/frac_reward_zero_std": [0.0] * 60,
        "train/reward": [0.4] * 60,
    }
    assert confidence("groups wrongly formed", alone("grpo", log)) == "possible"
    assert confidence("groups wrongly formed", alone("grpo", {**log, "train/reward": ramp(0.3, 0.8, 60)})) is None
    assert confidence("groups wrongly formed", healthy("grpo", log=log)) is None  # measured: right


FLAT = {"train/reward": [0.4] * 60, "eval/exact_match": [0.4] * 6}


@pytest.mark.parametrize(
    ("kl", "log", "expected"),
    [(3.0, FLAT, "likely"), (3.0, {}, "possible"), (0.5, FLAT, "possible"), (0.1, FLAT, None)],
)
def test_kl(kl: float, log: dict[str, Any], expected: str | None) -> None:
    case = alone("grpo", {"train/kl": [kl] * 60, **log}, learning_rate=3e-4)
    assert confidence("KL blow-up", case) == expected
    sign = found("KL blow-up", case)
    assert sign is None or sign.finding.patch == {"stages.stage.optimizer.learning_rate": 1e-4}


def test_entropy() -> None:
    log = {"train/entropy": ramp(0.8, 0.0, 60)}
    assert confidence("entropy collapse", alone("grpo", {**log, **FLAT})) in ("likely", "possible")
    gone = {"train/entropy": [0.8] * 20 + [0.01] * 40, **FLAT}
    assert confidence("entropy collapse", alone("grpo", gone)) == "likely"
    assert confidence("entropy collapse", alone("grpo", log)) is None  # answers got better
    assert confidence("entropy collapse", alone("grpo", {"train/entropy": ramp(0.8, 0.5, 60), **FLAT})) is None


def test_lengths() -> None:
    longer = {"train/completions/mean_length": ramp(10, 40, 60), "train/completions/length_reward_correlation": [0.5] * 60}
    assert confidence("length hacking", alone("grpo", {**longer, **FLAT})) == "likely"
    assert confidence("length hacking", alone("grpo", longer)) is None  # answers got better
    meant = {**longer, **FLAT, "train/rewards/length/mean": ramp(0.2, 0.6, 60)}
    assert confidence("length hacking", alone("grpo", meant)) == "possible"  # there is a reward for the length
    unrelated = {**longer, "train/completions/length_reward_correlation": [0.0] * 60}
    assert confidence("length hacking", alone("grpo", {**unrelated, **FLAT})) == "possible"
    assert confidence("length hacking", alone("grpo", {"train/completions/mean_length": ramp(10, 11, 60), **FLAT})) is None


@pytest.mark.parametrize(("share", "expected"), [(1.0, "certain"), (0.6, "likely"), (0.3, "possible"), (0.1, None)])
def test_cut_answers(share: float, expected: str | None) -> None:
    case = alone("grpo", {"train/completions/clipped_ratio": [share] * 60}, other={"rollout.max_new_tokens": 64})
    assert confidence("completions truncated", case) == expected
    sign = found("completions truncated", case)
    assert sign is None or sign.finding.patch == {"stages.stage.rollout.max_new_tokens": 128}


def test_answers_that_grew_up_to_the_limit() -> None:
    grown = [0.0] * 6 + [1.0] * 54
    sign = found("completions truncated", alone("grpo", {"train/completions/clipped_ratio": grown}))
    assert sign is not None and sign.finding.confidence == "possible" and ", 0.0% at first" in sign.finding.message
    noisy = [0.9, 0.5, 0.45, *[1.0] * 57]
    assert confidence("completions truncated", alone("grpo", {"train/completions/clipped_ratio": noisy})) == "certain"


def test_reward_hacking() -> None:
    worse = {"eval/exact_match": [0.4, 0.6, 0.5, 0.3]}
    slightly = {"eval/exact_match": [0.4, 0.6, 0.5, 0.52]}
    assert confidence("reward hacking", alone("grpo", slightly)) == "possible"
    assert confidence("reward hacking", alone("grpo", worse)) == "likely"
    assert confidence("reward hacking", alone("grpo", {**worse, "train/reward": [0.4] * 60})) is None
    loops = healthy("grpo", {"probe/repetition": 0.6, "probe/base_repetition": 0.1}, {"eval/exact_match": None})
    assert confidence("reward hacking", loops) == "likely"


# -- processes ------------------------------------------------------------------------------------------------------------


def test_what_the_log_says_of_processes() -> None:
    same = {"kind": "crash", "text": "error: processes read the same rows in 3 steps in a row, up to step 3"}
    drift = {
        "kind": "alert",
        "message": "process 1 does not hold the weights of process 0 after step 4 (first difference: norm)",
    }
    assert all_found(made({}, {}, [same], processes=2)) == ["same data on every process"]
    assert all_found(made({}, {}, [drift])) == ["processes drift apart"]
    assert all_found(made({}, {}, [{"kind": "stop", "reason": "time limit"}, {"kind": "stop", "reason": None}])) == []


def test_uneven_steps() -> None:
    seconds = [0.1, 0.1, 0.3] * 30
    assert confidence("uneven step times", made({}, {"system/step_seconds": seconds}, processes=4)) == "likely"
    assert confidence("uneven step times", made({}, {"system/step_seconds": seconds}, processes=1)) is None
    assert confidence("uneven step times", made({}, {"system/step_seconds": [0.1] * 88 + [3.0] * 2}, processes=4)) is None


# -- answers --------------------------------------------------------------------------------------------------------------


def test_answers_of_a_model_that_has_hardly_begun() -> None:
    wrong = {"probe/ended": 0.0, "probe/end_probability": 0.0, "probe/equal_answers": 1.0, "probe/repetition": 0.9}
    begun = {"train/loss": ramp(4, 3.5, 20)}
    for name in ("answers never end", "same answer to everything", "answers repeat themselves"):
        assert confidence(name, healthy("sft", wrong)) in ("likely", "certain")
        assert confidence(name, healthy("sft", wrong, begun)) == "possible"
    assert set(HEALTHY) >= set(wrong)

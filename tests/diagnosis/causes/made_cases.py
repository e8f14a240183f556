"""Made-up cases: figures, series and settings, and the figures of a healthy run of each kind."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fledge.diagnosis import Case, Cause, Sign
from fledge.diagnosis.causes import answers, data, model, preferences, processes, rewards, targets, template
from fledge.diagnosis.measures import MEASURES
from fledge.training_log import Series, TrainingLog, TrainingSettings

TABLES = (targets, data, template, model, preferences, rewards, processes, answers)
CAUSES: dict[str, Cause] = {cause.name: cause for table in TABLES for cause in table.CAUSES}
LN2 = float(np.log(2))


def series(values: Sequence[float], first: int = 1) -> Series:
    """Values at the steps from `first` on."""
    array = np.asarray(values, dtype=np.float64)
    return Series(np.arange(first, first + len(array), dtype=np.float64), array)


def made(
    figures: Mapping[str, Any] | None = None,
    log: Mapping[str, Sequence[float]] | None = None,
    events: Sequence[Mapping[str, Any]] = (),
    **settings: Any,
) -> Case:
    """A case with these figures of data and probes, series from step 1 on, events and settings."""
    training_log = TrainingLog(
        source="made up",
        path="run",
        stage="stage",
        series={name: series(values) for name, values in (log or {}).items()},
        settings=TrainingSettings(**settings),
        events=tuple(events),
    )
    case = Case(log=training_log)
    for name, value in (figures or {}).items():
        case.add(MEASURES[name].depth if name in MEASURES else "data", {name: value})
    return case


def found(name: str, case: Case) -> Sign | None:
    """What a cause finds in a case, if it can be in a stage of this kind."""
    cause = CAUSES[name]
    return cause.find(case) if not cause.kinds or case.kind in cause.kinds else None


def all_found(case: Case) -> list[str]:
    """The names of all causes of this room's part that are found in a case."""
    return [name for name in CAUSES if found(name, case) is not None]


HEALTHY: dict[str, Any] = {
    "data/examples": 5000,
    "data/target_share": 0.4,
    "data/prompt_supervised_share": 0.0,
    "data/answer_supervised_share": 1.0,
    "data/first_answer_token_supervised": 1.0,
    "data/last_prompt_token_supervised": 0.0,
    "data/ends_present": 1.0,
    "data/ends_supervised": 1.0,
    "data/batch_shift": 1,
    "data/duplicate_share": 0.0,
    "data/repeated_ngrams": 0.1,
    "data/largest_answer_share": 0.02,
    "data/frequent_other_answers": 0.0,
    "data/largest_source_share": 0.6,
    "data/largest_source_rows": 0.6,
    "data/identity_share": 0.01,
    "data/order_correlation": 0.01,
    "data/order_z": 0.5,
    "data/file_order_correlation": 0.02,
    "data/validation_overlap": 0.0,
    "data/unigram_entropy": 5.0,
    "data/bigram_entropy": 3.5,
    "data/max_token_id": 799,
    "data/vocab_size": 800,
    "data/mean_length": 60.0,
    "data/truncated_share": 0.0,
    "data/template_differs": 0.0,
    "data/control_tokens_split": [],
    "data/prompt_tokens_differ": 0.0,
    "data/answer_tokens_differ": 0.0,
    "data/text_differs": 0.0,
    "data/answer_tokens": 15.0,
    "data/answer_fit": 0.25,
    "data/answer_fit_z": 19.0,
    "data/answers_misplaced": 0.02,
    "data/built_differs": 0.0,
    "data/answers_without_weight": 0.0,
    "data/equal_pairs": 0.0,
    "data/chosen_longer": 0.55,
    "data/chosen_longer_text": 0.55,
    "data/pairs_contradicting": 0.0,
    "data/wrong_side": 0.0,
    "probe/loss_at_offsets": [9.0, 2.0, 5.0],
    "probe/base_loss_at_offsets": [8.0, 4.0, 6.0],
    "probe/prompt_loss": 3.9,
    "probe/answer_loss": 1.0,
    "probe/base_prompt_loss": 4.0,
    "probe/base_answer_loss": 3.0,
    "probe/answer_gain": 1.5,
    "probe/base_answer_gain": 0.2,
    "probe/answers_helped": 0.97,
    "probe/training_loss": 0.97,
    "probe/validation_loss": 1.0,
    "probe/logged_loss": 0.001,
    "probe/end_probability": 0.9,
    "probe/accumulation_ratio": 1.0,
    "probe/accumulation_cosine": 1.0,
    "probe/shift_gradient": 1,
    "probe/unchanged_tensors": [],
    "probe/unmoved_tensors": [],
    "probe/changed_frozen": [],
    "probe/missing_from_optimizer": [],
    "probe/restored_state": 1.0,
    "probe/update_ratios": {"attention": 0.001},
    "probe/adapter_b_norm": 0.4,
    "probe/head_tied": True,
    "probe/two_passes": 0.0,
    "probe/evaluation_dropout": 0.0,
    "probe/future_leak": 0.0,
    "probe/document_leak": 1e-6,
    "probe/padding_leak": 1e-6,
    "probe/reference_loss": LN2,
    "probe/reference_loss_expected": LN2,
    "probe/reference_margin": 1e-6,
    "probe/reference_moved": 1e-6,
    "probe/preference_loss_slope": -0.05,
    "probe/beta_effect": -0.04,
    "probe/advantage_alignment": 1.0,
    "probe/ended": 0.95,
    "probe/base_ended": 0.2,
    "probe/repetition": 0.02,
    "probe/base_repetition": 0.1,
    "probe/prompt_copy": 0.01,
    "probe/base_prompt_copy": 0.02,
    "probe/equal_answers": 0.1,
    "probe/identity_answers": 0.0,
    "probe/greedy_repetition": 0.05,
    "probe/expert_load": 1.3,
    "probe/dead_experts": 0.0,
    "probe/embedding_rows_unused": 0.01,
    "probe/base_text_loss": 3.1,
    "probe/base_text_loss_before": 3.0,
    "probe/files_damaged": [],
}
SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "vocab_size": 800,
    "parameters": 1_000_000.0,
    "trained_parameters": 1_000_000.0,
    "method": "full",
    "initial": "trained",
    "context": 128,
    "accumulation_steps": 2,
    "processes": 1,
    "beta": 0.1,
    "num_generations": 8,
    "dropout": 0.0,
}


def fall(first: float, last: float, count: int = 200) -> list[float]:
    """A loss that falls ever more slowly."""
    return [last + (first - last) / (1 + 0.05 * step) for step in range(count)]


def ramp(first: float, last: float, count: int = 200) -> list[float]:
    """Values that go evenly from one to another."""
    return list(np.linspace(first, last, count))


LANGUAGE_LOG = {
    "train/loss": fall(4.0, 1.0),
    "train/lr": ramp(1e-3, 1e-4),
    "train/grad_norm": ramp(2.0, 0.5),
    "eval/loss": fall(3.5, 1.1, 10),
    "update_ratio/attention": ramp(2e-3, 1e-3, 20),
    "update_ratio/mlp": ramp(2e-3, 1e-3, 20),
    "router/min_load": ramp(0.4, 0.7),
    "router/max_load": ramp(1.9, 1.3),
    "system/step_seconds": ramp(0.1, 0.11),
}
PREFERENCE_LOG = {
    "train/loss": ramp(LN2, 0.4),
    "train/lr": ramp(1e-5, 1e-6),
    "train/grad_norm": ramp(2.0, 0.5),
    "eval/loss": ramp(0.65, 0.45, 10),
    "train/rewards/margins": ramp(0.0, 1.5),
    "train/rewards/accuracies": [0.0, *ramp(0.5, 0.85, 199)],
    "train/rewards/accuracies_shorter": ramp(0.5, 0.8),
    "train/length_correlation": ramp(0.0, 0.15),
    "train/logps/chosen": ramp(-40.0, -41.0),
    "train/logps/rejected": ramp(-45.0, -58.0),
    "train/lengths/chosen": ramp(20.0, 20.0),
    "train/lengths/rejected": ramp(20.0, 20.0),
    "train/drift/chosen": ramp(0.0, -0.05),
    "train/drift/rejected": ramp(0.0, -0.65),
    "train/sft_loss": ramp(2.0, 2.05),
}
REWARD_LOG = {
    "train/loss": [0.01 * (-1) ** step for step in range(60)],
    "train/lr": ramp(1e-4, 1e-4, 60),
    "train/grad_norm": ramp(1.0, 0.5, 60),
    "train/reward": ramp(0.3, 0.9, 60),
    "train/reward_std": ramp(0.3, 0.1, 60),
    "train/frac_reward_zero_std": ramp(0.3, 0.75, 60),
    "train/entropy": ramp(0.6, 0.05, 60),
    "train/kl": ramp(0.0, 0.1, 60),
    "train/completions/mean_length": ramp(12.0, 12.5, 60),
    "train/completions/max_length": ramp(30.0, 30.0, 60),
    "train/completions/clipped_ratio": ramp(0.1, 0.0, 60),
    "train/completions/unique_fraction": ramp(0.8, 0.4, 60),
    "train/completions/length_reward_correlation": ramp(0.0, 0.05, 60),
    "eval/exact_match": ramp(0.4, 0.9, 6),
}
KTO_LOG = {
    **{name: values for name, values in PREFERENCE_LOG.items() if "margins" not in name and "accuracies" not in name},
    "train/loss": ramp(0.5, 0.3),
    "train/rewards/chosen": ramp(0.0, 0.5),
    "train/rewards/rejected": ramp(0.0, -0.5),
    "train/kl": ramp(0.0, 0.1),
}
LOGS = {
    "pretrain": LANGUAGE_LOG,
    "sft": LANGUAGE_LOG,
    "preference": PREFERENCE_LOG,
    "kto": KTO_LOG,
    "reward": PREFERENCE_LOG,
    "grpo": REWARD_LOG,
}


def healthy(kind: str, figures: Mapping[str, Any] | None = None, log: Mapping[str, Any] | None = None, **settings: Any) -> Case:
    """A healthy run of a kind with all figures, some of them changed; a series of None is left out."""
    series_of = {name: values for name, values in {**LOGS[kind], **(log or {})}.items() if values is not None}
    changed = {name: value for name, value in {**HEALTHY, **(figures or {})}.items() if value is not None}
    return made(changed, series_of, **{"kind": kind, **SETTINGS, **settings})

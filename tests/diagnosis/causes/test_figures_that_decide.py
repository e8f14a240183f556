"""Each limit of a figure that decides a cause: found at it, with its confidence, and not beyond it."""

import math
from typing import Any

import pytest

from fledge.diagnosis.causes.signs import CONFIDENCES
from fledge.diagnosis.diagnose import diagnose
from fledge.diagnosis.thresholds import thresholds
from tests.diagnosis.causes.made_cases import LN2, all_found, found, healthy, made

UP, DOWN = 1, -1
GRADED: list[tuple[str, str, str, str, int, str, dict[str, Any]]] = [
    # cause, kind, section and name of the limits, direction, figure, other figures
    ("prompt not masked", "sft", "targets", "prompt_supervised", UP, "data/prompt_supervised_share", {}),
    ("answers paired with wrong prompts", "sft", "targets", "answer_fit", DOWN, "data/answer_fit_z",
     {"probe/answers_helped": None}),
    ("answers paired with wrong prompts", "sft", "targets", "misplaced", UP, "data/answers_misplaced", {}),
    ("noisy answers", "sft", "targets", "tokens_differ", UP, "data/answer_tokens_differ", {}),
    ("tokenizer does not fit the model", "sft", "template", "tokens_differ", UP, "data/prompt_tokens_differ",
     {"data/text_differs": 1.0}),
    ("duplicated data", "pretrain", "data", "duplicates", UP, "data/duplicate_share", {}),
    ("one source swamps the rest", "sft", "data", "largest_source", UP, "data/largest_source_share", {}),
    ("identity rows dominate", "sft", "data", "identity", UP, "data/identity_share", {"probe/identity_answers": None}),
    ("data not shuffled", "pretrain", "data", "order", UP, "data/order_correlation", {"data/order_z": 20.0}),
    ("answers all equal", "sft", "data", "largest_answer", UP, "data/largest_answer_share", {"probe/equal_answers": 0.9}),
    ("validation rows in training data", "sft", "data", "overlap", UP, "data/validation_overlap", {}),
    ("context cuts answers", "sft", "data", "truncated", UP, "data/truncated_share", {}),
    ("template differs in serving", "sft", "template", "differs", UP, "data/template_differs", {}),
    ("tokenizer does not fit the model", "sft", "template", "rows_unused", UP, "probe/embedding_rows_unused", {}),
    ("dropout active in evaluation", "sft", "model", "passes_differ", UP, "probe/two_passes", {}),
    ("dropout active in evaluation", "sft", "model", "evaluations_differ", UP, "probe/evaluation_dropout", {}),
    ("experts collapsed", "pretrain", "model", "dead_experts", UP, "probe/dead_experts", {}),
    ("chosen and rejected swapped", "preference", "preferences", "wrong_side", UP, "data/wrong_side", {}),
    ("pairs equal or contradicting", "preference", "preferences", "equal_pairs", UP, "data/equal_pairs", {}),
    ("pairs equal or contradicting", "preference", "preferences", "contradicting", UP, "data/pairs_contradicting", {}),
    ("length bias in preferences", "preference", "preferences", "chosen_longer", UP, "data/chosen_longer", {}),
    ("groups wrongly formed", "grpo", "rewards", "alignment", DOWN, "probe/advantage_alignment", {}),
    ("answers never end", "sft", "answers", "ended", DOWN, "probe/ended", {"probe/end_probability": 0.01}),
    ("answers repeat the prompt", "sft", "answers", "prompt_copy", UP, "probe/prompt_copy", {"probe/base_prompt_copy": 0.0}),
    ("answers repeat themselves", "sft", "answers", "repetition", UP, "probe/repetition", {"probe/base_repetition": 0.0}),
    ("greedy decoding loops", "sft", "answers", "greedy_repetition", UP, "probe/greedy_repetition", {}),
    ("same answer to everything", "sft", "answers", "equal_answers", UP, "probe/equal_answers", {}),
    ("identity in unrelated answers", "sft", "answers", "identity", UP, "probe/identity_answers", {}),
]  # fmt: skip


@pytest.mark.parametrize(("cause", "kind", "section", "name", "way", "figure", "others"), GRADED)
def test_each_limit_on_both_sides(
    cause: str, kind: str, section: str, name: str, way: int, figure: str, others: dict[str, Any]
) -> None:
    limits = {one: thresholds()[section][f"{name}_{one}"] for one in CONFIDENCES if f"{name}_{one}" in thresholds()[section]}
    assert limits
    graded = list(limits.items())
    assert sorted(limits.values(), reverse=way == UP) == list(limits.values())  # a stronger confidence needs more
    for place, (confidence, limit) in enumerate(graded):
        at = found(cause, healthy(kind, {**others, figure: limit}))
        assert at is not None
        assert at.finding.confidence == confidence
        assert at.finding.check == cause
        short = found(cause, healthy(kind, {**others, figure: limit * (1 - way * 1e-6)}))
        weaker = graded[place + 1][0] if place + 1 < len(graded) else None
        assert (short and short.finding.confidence) == weaker
    assert found(cause, healthy(kind, {**others, figure: None})) is None
    assert found(cause, healthy(kind, {**others, figure: math.nan})) is None


MASK = {"data/first_answer_token_supervised": 1.0}
NO_HELP = {"probe/answer_gain": 0.0, "probe/answers_helped": 0.5}
DECIDED: list[tuple[str, str, str, dict[str, Any], dict[str, Any]]] = [
    # cause, kind, confidence, figures with which it is found, figures near them with which it is not
    ("mask off by one", "sft", "certain", {"data/last_prompt_token_supervised": 1.0, "data/prompt_supervised_share": 0.08,
     "data/ends_supervised": 0.0}, {"data/last_prompt_token_supervised": 0.3, "data/prompt_supervised_share": 0.3}),
    ("mask off by one", "sft", "certain", {"data/first_answer_token_supervised": 0.0, "data/answer_supervised_share": 0.9},
     {"data/first_answer_token_supervised": 0.9, "data/answer_supervised_share": 0.9}),
    ("everything masked", "sft", "certain", {"data/target_share": 0.0}, {"data/target_share": 0.01}),
    ("everything masked", "sft", "certain", {"data/answer_supervised_share": 0.0}, {"data/answer_supervised_share": 0.2}),
    ("end token never supervised", "sft", "certain", {"data/ends_supervised": 0.0}, {"data/ends_supervised": 0.95}),
    ("end token never supervised", "sft", "likely", {"data/ends_supervised": 0.7}, {"data/ends_present": 0.0}),
    ("end token missing", "sft", "certain", {"data/ends_present": 0.3}, {"data/ends_present": 0.99}),
    ("end token missing", "sft", "likely", {"data/ends_present": 0.8}, {"data/ends_present": None}),
    ("answers partly supervised", "sft", "certain", {"data/answer_supervised_share": 0.5, "data/ends_supervised": 0.0},
     {"data/answer_supervised_share": 0.93, "data/ends_supervised": 0.0}),
    ("answers partly supervised", "sft", "likely", {"data/answer_supervised_share": 0.85},
     {"data/answer_supervised_share": 0.75, "data/answer_tokens": 4.0, "data/ends_supervised": 0.0}),
    ("answers partly supervised", "sft", "certain", {"data/answer_supervised_share": 0.25, "data/ends_supervised": 0.25,
     "data/first_answer_token_supervised": 0.25}, {"data/answer_supervised_share": 0.95}),
    ("everything masked", "sft", "likely", {"data/answer_supervised_share": 0.06}, {"data/answer_supervised_share": 0.2}),
    ("answers paired with wrong prompts", "sft", "likely", {"data/answer_fit_z": 0.1, "probe/answers_helped": 0.55},
     {"data/answer_fit_z": 0.1, "data/largest_answer_share": 0.9}),
    ("answers paired with wrong prompts", "sft", "possible", {"data/answer_fit_z": 0.1}, {}),
    ("answers paired with wrong prompts", "sft", "possible", {"data/answer_fit_z": 0.1, "data/examples": 100}, {}),
    ("answers paired with wrong prompts", "sft", "possible", NO_HELP, {**NO_HELP, "probe/answer_loss": 2.9}),
    ("answers paired with wrong prompts", "sft", "likely", {"probe/answers_helped": 0.69, "data/answer_fit_z": None},
     {"probe/answers_helped": 0.69, "probe/answer_gain": 0.1}),
    ("noisy answers", "sft", "certain", {"data/answer_tokens_differ": 0.14},
     {"data/answer_tokens_differ": 0.5, "data/prompt_tokens_differ": 0.5}),
    ("targets not shifted", "pretrain", "certain", {"probe/shift_gradient": 0}, {"probe/loss_at_offsets": [1.9, 2.0, 5.0]}),
    ("targets not shifted", "pretrain", "certain", {"data/batch_shift": 0}, {"data/batch_shift": 1}),
    ("targets not shifted", "pretrain", "certain", {"probe/shift_gradient": None, "probe/loss_at_offsets": [0.1, 6.0, 7.0]},
     {"probe/shift_gradient": 1, "probe/loss_at_offsets": [0.1, 6.0, 7.0]}),
    ("targets not shifted", "pretrain", "likely", {"probe/shift_gradient": None, "probe/loss_at_offsets": [0.1, 6.0, 7.0],
     "probe/base_loss_at_offsets": None}, {"probe/shift_gradient": None, "probe/loss_at_offsets": [5.5, 6.0, 7.0],
     "probe/base_loss_at_offsets": [5.6, 6.6, 6.6]}),
    ("targets shifted twice", "sft", "certain", {"probe/shift_gradient": 2}, {"probe/shift_gradient": -1}),
    ("targets shifted twice", "sft", "certain", {"probe/shift_gradient": -1, "probe/loss_at_offsets": {"0": 9, "1": 6, "2": 3}},
     {"probe/shift_gradient": -1, "probe/loss_at_offsets": {"0": 9, "1": 3, "2": 6}}),
    ("accumulation normalised wrongly", "sft", "certain", {"probe/accumulation_ratio": 4.0},
     {"probe/accumulation_ratio": 1.001}),
    ("logged loss is wrong", "sft", "certain", {"probe/logged_loss": -0.8}, {"probe/logged_loss": 0.01}),
    ("duplicated data", "sft", "likely", {"data/repeated_ngrams": 0.5, "probe/training_loss": 0.7},
     {"data/repeated_ngrams": 0.15, "probe/training_loss": 0.7}),
    ("duplicated data", "pretrain", "likely", {"data/repeated_ngrams": 0.4, "data/target_share": 1.0},
     {"data/repeated_ngrams": 0.1, "data/target_share": 1.0}),
    ("duplicated data", "sft", "possible", {"data/repeated_ngrams": 0.9}, {"data/repeated_ngrams": 0.15}),
    ("duplicated data", "kto", "possible", {"data/repeated_ngrams": 0.55, "probe/training_loss": 0.2},
     {"data/repeated_ngrams": 0.15, "probe/training_loss": 0.2}),
    ("one source swamps the rest", "sft", "likely", {"data/largest_source_share": 0.7, "data/largest_source_rows": 0.03},
     {"data/largest_source_share": 0.7, "data/largest_source_rows": 0.6}),
    ("length bias in preferences", "preference", "likely", {"data/chosen_longer": 0.94, "data/chosen_longer_text": 1.0},
     {"data/chosen_longer": 0.6, "data/chosen_longer_text": 0.6}),
    ("identity rows dominate", "sft", "likely", {"data/identity_share": 0.25, "probe/identity_answers": 0.6},
     {"data/identity_share": 0.01, "probe/identity_answers": 0.6}),
    ("data not shuffled", "sft", "likely", {"data/order_correlation": 0.3, "data/order_z": 9.0},
     {"data/order_correlation": 0.3, "data/order_z": 3.0}),
    ("data not shuffled", "sft", "likely", {"data/file_order_correlation": 0.97}, {"data/file_order_correlation": 0.5}),
    ("answers never end", "sft", "likely", {"probe/ended": 0.0, "probe/end_probability": 0.01},
     {"probe/ended": 0.0, "probe/end_probability": 0.5}),
    ("answers never end", "sft", "possible", {"probe/ended": 0.0, "probe/end_probability": 0.2}, {}),
    ("answers cut by the token limit", "sft", "possible", {"probe/ended": 0.1, "data/answer_tokens": 120.0}, {}),
    ("greedy decoding loops", "sft", "possible", {"probe/greedy_repetition": 0.7, "probe/ended": 0.4}, {}),
    ("checkpoint damaged", "sft", "likely", {"probe/files_damaged": ["step-1: model/chat_template.jinja has 9 bytes"]}, {}),
    ("groups wrongly formed", "grpo", "certain", {"probe/advantage_alignment": -1.0}, {"probe/advantage_alignment": 0.99}),
    ("tokens outside of the vocabulary", "sft", "certain", {"data/max_token_id": 800}, {"data/max_token_id": 799}),
    ("control tokens are split", "sft", "certain", {"data/control_tokens_split": ["<|im_end|>"]},
     {"data/control_tokens_split": []}),
    ("control tokens are split", "sft", "certain", {"data/control_tokens_split": 2}, {"data/control_tokens_split": 0}),
    ("tokenizer does not fit the model", "sft", "certain", {"data/vocab_size": 801}, {"data/vocab_size": 800}),
    ("tokenizer does not fit the model", "sft", "certain", {"data/vocab_size": 700, "data/max_token_id": 750},
     {"data/vocab_size": 790, "data/max_token_id": 789}),
    ("tensors that do not learn", "sft", "certain", {"probe/missing_from_optimizer": ["lm_head.weight"]},
     {"probe/missing_from_optimizer": []}),
    ("tensors that do not learn", "sft", "certain", {"probe/unchanged_tensors": ["layers.0.mlp.up_proj.weight"]},
     {"probe/unchanged_tensors": ["layers.0.mlp.up_proj.lora_A"]}),
    ("tensors that do not learn", "sft", "certain", {"probe/unmoved_tensors": ["norm.weight"]}, {"probe/unmoved_tensors": []}),
    ("frozen tensors change", "sft", "certain", {"probe/changed_frozen": ["embed_tokens.weight"]},
     {"probe/changed_frozen": []}),
    ("tied head broken", "sft", "certain", {"probe/head_tied": False}, {"probe/head_tied": True}),
    ("model sees the future", "pretrain", "certain", {"probe/future_leak": 2.0}, {"probe/future_leak": 1e-5}),
    ("packed documents see each other", "sft", "certain", {"probe/document_leak": 0.2}, {"probe/document_leak": 1e-5}),
    ("padding is attended", "sft", "certain", {"probe/padding_leak": 0.2}, {"probe/padding_leak": 1e-5}),
    ("checkpoint damaged", "sft", "certain", {"probe/files_damaged": ["step-1/model.safetensors is cut"]},
     {"probe/files_damaged": []}),
    ("cross-entropy instead of preferences", "preference", "certain", {"probe/reference_loss": 1.25},
     {"probe/reference_loss": 1.25, "probe/reference_margin": 2.0}),
    ("cross-entropy instead of preferences", "preference", "certain", {"probe/reference_loss": LN2 + 0.04},
     {"probe/reference_loss": LN2 + 1e-4}),
    ("cross-entropy instead of preferences", "preference", "certain", {"probe/reference_loss": 2.5, "probe/beta_effect": 0.0,
     "probe/reference_margin": None}, {"probe/reference_loss": 2.5, "probe/reference_margin": None}),
    ("reference moves with the policy", "preference", "likely", {"probe/preference_loss_slope": 0.0, "probe/beta_effect": 0.0},
     {"probe/preference_loss_slope": -0.01}),
    ("wrong reference", "preference", "certain", {"probe/reference_loss": 0.9, "probe/reference_margin": 0.2},
     {"probe/reference_loss": 0.9}),
    ("wrong reference", "kto", "certain", {"probe/reference_loss": 0.55, "probe/reference_loss_expected": 0.5},
     {"probe/reference_loss": 0.5, "probe/reference_loss_expected": 0.5}),
    ("wrong reference", "preference", "certain", {"probe/reference_margin": 0.4}, {"probe/reference_margin": 1e-4}),
    ("wrong reference", "preference", "certain", {"probe/reference_moved": 0.3}, {"probe/reference_moved": 1e-4}),
    ("beta too small", "preference", "likely", {"probe/preference_loss_slope": -0.0005},
     {"probe/preference_loss_slope": -0.01}),
    ("beta too large", "preference", "likely", {"probe/preference_loss_slope": -2.5}, {"probe/preference_loss_slope": -0.2}),
    ("wrong reference", "preference", "certain", {"probe/reference_loss": 0.377, "probe/reference_margin": 15.0,
     "probe/preference_loss_slope": -0.004}, {"probe/preference_loss_slope": -0.004}),
    ("chosen and rejected swapped", "preference", "certain", {"probe/preference_loss_slope": 0.05},
     {"probe/preference_loss_slope": -0.05}),
    ("answers cut by the token limit", "sft", "likely", {"probe/ended": 0.1},
     {"probe/ended": 0.1, "probe/end_probability": 0.01}),
    ("greedy decoding loops", "sft", "likely", {"probe/greedy_repetition": 0.7},
     {"probe/greedy_repetition": 0.7, "probe/repetition": 0.4}),
    ("answers repeat the prompt", "sft", "likely", {"probe/prompt_copy": 0.5},
     {"probe/prompt_copy": 0.5, "probe/base_prompt_copy": 0.5}),
    ("answers repeat the prompt", "sft", "possible", {"probe/prompt_copy": 0.5, "probe/base_prompt_copy": None},
     {"probe/prompt_copy": 0.05, "probe/base_prompt_copy": None}),
    ("forgetting", "sft", "certain", {"probe/base_text_loss": 5.5}, {"probe/base_text_loss": 3.4}),
    ("forgetting", "sft", "likely", {"probe/base_text_loss": 4.6}, {"probe/base_text_loss": 3.4}),
    ("forgetting", "sft", "possible", {"probe/base_text_loss": 3.6}, {"probe/base_text_loss": 3.6,
     "probe/base_text_loss_before": None}),
]  # fmt: skip


@pytest.mark.parametrize(("cause", "kind", "confidence", "wrong", "right"), DECIDED)
def test_a_figure_decides(cause: str, kind: str, confidence: str, wrong: dict[str, Any], right: dict[str, Any]) -> None:
    sign = found(cause, healthy(kind, wrong))
    assert sign is not None
    assert sign.finding.confidence == confidence
    assert sign.finding.evidence
    assert found(cause, healthy(kind, right)) is None


@pytest.mark.parametrize("kind", ["pretrain", "sft", "preference", "kto", "reward", "grpo"])
def test_a_healthy_run_is_silent(kind: str) -> None:
    assert all_found(healthy(kind)) == []
    assert all_found(healthy(kind, method="lora", trained_parameters=2e4)) == []


@pytest.mark.parametrize("kind", ["pretrain", "sft", "preference", "kto", "reward", "grpo"])
def test_the_start_of_a_healthy_run_is_silent(kind: str) -> None:
    """Before anything was learned: no end, no help of prompts, an adapter of zeros, equal loads far off."""
    unlearned = {
        "probe/loss_at_offsets": [6.5, 6.7, 6.7],
        "probe/base_loss_at_offsets": [6.5, 6.7, 6.7],
        "probe/answer_gain": 0.0,
        "probe/answers_helped": 0.5,
        "probe/answer_loss": 3.0,
        "probe/adapter_b_norm": 0.0,
        "probe/dead_experts": 0.3,
    }
    short = {name: list(values)[:5] for name, values in healthy(kind).log.series.items() for values in [values.values]}
    case = healthy(kind, unlearned, short, method="lora")
    assert all_found(case) == []


def test_an_end_that_is_cut_away_is_told_as_a_cut() -> None:
    case = healthy("sft", {"data/truncated_share": 0.8, "data/ends_present": 0.2})
    assert all_found(case) == ["end token missing", "context cuts answers"]
    missing = found("end token missing", case)
    assert missing is not None and missing.finding.confidence == "possible"
    sign = found("context cuts answers", case)
    assert sign is not None and sign.finding.patch == {"stages.stage.data.max_seq_len": 256}


def test_rows_that_are_refused_are_told_as_a_cut_and_not_as_an_error() -> None:
    text = "none of the 80 rows of 'rows.jsonl' can be used (80 prompt longer than the context)"
    case = made({}, {}, [{"kind": "crash", "text": text, "step": 0}], kind="sft", context=16)
    told = diagnose(case)
    assert [one.cause for one in told.found] == ["context cuts answers"]
    assert [one.check for one in told.found[0].consequences] == ["stopped by an error"]
    assert "16 tokens" in told.found[0].sign.finding.message


def test_other_tokens_of_the_same_text_are_split_and_not_of_another_tokenizer() -> None:
    figures = {"data/control_tokens_split": ["<|im_end|>"], "data/prompt_tokens_differ": 1.0}
    told = diagnose(healthy("sft", {**figures, "data/text_differs": 0.0}))
    assert [one.cause for one in told.found] == ["control tokens are split"]
    told = diagnose(healthy("sft", {**figures, "data/text_differs": 1.0}))
    assert [one.cause for one in told.found] == ["tokenizer does not fit the model"]


def test_forgetting_is_information_while_the_validation_loss_falls() -> None:
    figures = {"probe/base_text_loss": 5.5}
    fine = found("forgetting", healthy("sft", figures))
    assert fine is not None and fine.finding.severity == "info" and diagnose(healthy("sft", figures)).is_healthy
    rising = healthy("sft", figures, {"eval/loss": [2.0, 1.5, 1.2, *(1.3 + 0.1 * step for step in range(7))]})
    told = {one.cause: one.sign.finding.severity for one in diagnose(rising).found}
    assert told["forgetting"] == "warning"


CLASSES = {"data/largest_answer_share": 0.5, "data/frequent_other_answers": 1.0}


@pytest.mark.parametrize("agree", [9, 11, 14, None])
def test_rows_of_a_classification_are_healthy_and_so_is_a_model_that_answers_as_they_do(agree: int | None) -> None:
    case = healthy("sft", {**CLASSES, "probe/equal_answers": None if agree is None else agree / 16})
    told = diagnose(case)
    assert [(one.cause, one.sign.finding.severity) for one in told.found] == [("answers all equal", "info")]
    assert told.is_healthy


def test_a_model_that_gives_one_class_to_everything_is_told() -> None:
    told = diagnose(healthy("sft", {**CLASSES, "probe/equal_answers": 1.0}))
    assert [one.cause for one in told.found if one.sign.finding.confidence != "possible"] == ["same answer to everything"]
    assert [one.sign.finding.severity for one in told.found if one.cause == "answers all equal"] == ["warning"]


@pytest.mark.parametrize(("others", "confidence"), [(0.1, "certain"), (None, "certain"), (1.0, "possible")])
def test_one_answer_beside_rare_ones_or_alone_is_no_classification(others: float | None, confidence: str) -> None:
    figures = {"data/largest_answer_share": 0.9, "data/frequent_other_answers": others, "probe/equal_answers": None}
    sign = found("answers all equal", healthy("sft", figures))
    assert sign is not None and sign.finding.confidence == confidence


@pytest.mark.parametrize(
    ("rows", "severity", "confidence"),
    [(0.97, "info", "possible"), (None, "info", "possible"), (0.9, "warning", "likely"), (0.03, "warning", "likely")],
)
def test_a_source_swamps_the_rest_where_it_is_drawn_more_often_than_its_rows(
    rows: float | None, severity: str, confidence: str
) -> None:
    """A small source beside a large one, such as rows on the identity, is no fault."""
    sign = found(
        "one source swamps the rest", healthy("sft", {"data/largest_source_share": 0.97, "data/largest_source_rows": rows})
    )
    assert sign is not None
    assert (sign.finding.severity, sign.finding.confidence) == (severity, confidence)


def test_pad_is_end() -> None:
    other = {"pad_token_id": 2, "eos_token_id": 2}
    case = healthy("sft", {"data/ends_supervised": 0.0}, other=other)
    assert all_found(case) == ["pad token hides the end token", "end token never supervised"]
    apart = healthy("sft", {"data/ends_supervised": 0.0}, other={"pad_token_id": 0, "eos_token_id": 2})
    assert all_found(apart) == ["end token never supervised"]
    assert all_found(healthy("sft", other=other)) == []  # the collator knows better
    unknown = {"data/ends_supervised": None, "data/ends_present": None, "probe/ended": 0.0}
    sign = found("pad token hides the end token", healthy("sft", unknown, other=other))
    assert sign is not None and sign.finding.confidence == "possible"


def test_only_last_turns_are_trained_as_set() -> None:
    figures = {"data/answer_supervised_share": 0.5, "data/first_answer_token_supervised": 0.5, "data/ends_supervised": 0.5}
    assert all_found(healthy("sft", figures, other={"data.train_on_turns": "last"})) == []
    assert all_found(healthy("sft", {**figures, "data/ends_supervised": 0.5})) == ["answers partly supervised"]


def test_prompts_that_were_learned_without_the_data() -> None:
    figures = {"data/prompt_supervised_share": None, "probe/base_prompt_loss": 6.0}
    sign = found("prompt not masked", healthy("sft", figures))
    assert sign is not None and sign.finding.confidence == "possible"
    assert found("prompt not masked", healthy("sft", {**figures, "probe/base_prompt_loss": 4.3})) is None


def test_wrong_prompts_are_likely_once_the_loss_is_flat() -> None:
    flat = {"train/loss": [3.0] * 50 + [1.0] * 150}
    sign = found("answers paired with wrong prompts", healthy("sft", {**NO_HELP, "data/answer_fit_z": None}, flat))
    assert sign is not None and sign.finding.confidence == "likely"
    assert "trained too short" in sign.alternatives


def test_the_direction_of_an_accumulated_gradient() -> None:
    plain = {"router/max_load": None, "router/min_load": None}
    sign = found("accumulation normalised wrongly", healthy("sft", {"probe/accumulation_cosine": 0.995}, plain))
    assert sign is not None and sign.finding.confidence == "likely"
    assert found("accumulation normalised wrongly", healthy("sft", {"probe/accumulation_cosine": 0.9999}, plain)) is None


def test_accumulation_is_no_harm_where_nothing_is_accumulated() -> None:
    sign = found("accumulation normalised wrongly", healthy("sft", {"probe/accumulation_ratio": 4.0}, accumulation_steps=1))
    assert sign is not None and sign.finding.severity == "info"
    routed = healthy("pretrain", {"probe/accumulation_ratio": 1.02})
    assert found("accumulation normalised wrongly", routed) is None  # losses of a router are means of micro-batches


def test_too_little_data() -> None:
    case = healthy("pretrain", {"data/examples": 50, "data/mean_length": 60.0}, initial="fresh")
    sign = found("too little data for the model", case)
    assert sign is not None and sign.finding.confidence == "likely"
    assert found("too little data for the model", healthy("pretrain", {"data/examples": 50})) is None  # starts from a model
    copies = healthy("pretrain", {"data/examples": 1000, "data/duplicate_share": 0.9}, initial="fresh")
    assert found("too little data for the model", copies) is not None
    assert found("too little data for the model", healthy("pretrain", initial="fresh")) is None


def test_grouped_by_length_as_set() -> None:
    figures = {"data/order_correlation": 0.6, "data/order_z": 30.0}
    sign = found("data not shuffled", healthy("sft", figures, other={"group_by_length": True}))
    assert sign is not None and sign.finding.severity == "info"


@pytest.mark.parametrize(
    ("share", "logged", "confidence"),
    [(0.8, 1.3, "certain"), (0.3, 1.3, "likely"), (0.4, 1.0, "likely"), (0.25, 1.0, "possible")],
)
def test_dropout(share: float, logged: float, confidence: str) -> None:
    log = {"train/loss": [3.0] * 50 + [logged] * 150}
    sign = found("dropout too strong", healthy("sft", {"probe/training_loss": 0.97}, log, dropout=share))
    assert sign is not None and sign.finding.confidence == confidence
    assert found("dropout too strong", healthy("sft", log=log, dropout=0.1)) is None


def test_label_smoothing() -> None:
    sign = found("label smoothing too strong", healthy("sft", other={"label_smoothing": 0.4}))
    assert sign is not None and sign.finding.patch == {"stages.stage.label_smoothing": 0.0}
    assert found("label smoothing too strong", healthy("sft", other={"label_smoothing": 0.1})) is None

"""The verdict on a stage: which figures speak for which decision."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fledge.data.storage import Examples
from fledge.evaluate.intervals import wilson_interval
from fledge.evaluate.records import ItemResult, MetricValue, SetResult
from fledge.evaluate.training_targets import TargetFacts, answer_header, training_targets
from fledge.evaluate.verdict import EXIT_CODES, decide, thresholds
from fledge.evaluate.verdict_rules import MENDED, StageEvidence, reasons
from fledge.findings import Finding
from fledge.recipe.sections.verdict import VerdictConfig
from fledge.tokenizer import Message, Tokenizer
from tests.support.small_model import model as decoder

LEARNED: dict[str, Any] = {"before": {"loss": 5.0, "bits_per_byte": 2.0}, "after": {"loss": 0.8, "bits_per_byte": 0.3}}
HEALTHY_ROWS = TargetFacts(
    rows=100, targets=2000, prompt_targets=0, answers=100, trained_ends=100, compared=90, misfits=2, telling=1.5
)


def judged(config: VerdictConfig | None = None, kind: str = "sft", **evidence: Any) -> tuple[str, dict[str, str | None]]:
    """The decision on a stage, and what each check speaks for."""
    stage = StageEvidence(kind=kind, config=config or VerdictConfig(), **{"validation_rows": 200, **LEARNED, **evidence})
    decision, ordered = decide(reasons(stage))
    return decision, {reason.check: reason.decision for reason in ordered}


def rates(metric: str, right: int, of: int, higher: bool = True, offset: int = 0) -> SetResult:
    """A set whose first `right` items, from `offset` on, have the value 1."""
    values = [float(offset <= number < offset + right) for number in range(of)]
    interval = wilson_interval(right, of)
    return SetResult(
        name="set",
        kind="prompts",
        fingerprint="a",
        metrics={metric: MetricValue(value=right / of, interval=interval, count=of, higher_is_better=higher)},
        items=tuple(ItemResult(id=str(n), prompt="", values={metric: value}) for n, value in enumerate(values)),
    )


def test_a_stage_that_has_learned_and_has_nothing_against_it_is_released():
    assert judged(targets=HEALTHY_ROWS) == ("release", {"learned": "release"})


def test_a_severe_cause_that_the_doctor_found_is_told_and_decides_nothing():
    event = {"kind": "finding", "step": 20, "cause": "learning rate too high", "message": "too high", "hint": "lower it"}
    severe, mild = {**event, "severity": "error"}, {**event, "severity": "warning"}
    assert judged(diagnosed=[severe]) == ("release", {"learned": "release", "diagnosed": None})
    assert judged(diagnosed=[mild])[1] == {"learned": "release"}
    assert judged(diagnosed=[severe], before={}, after={})[0] == "keep training"
    stage = StageEvidence(kind="sft", config=VerdictConfig(), diagnosed=[mild, severe, {**severe, "step": 40}])
    (reason,) = reasons(stage)
    assert reason.message == "too high (found while training, at step 40)" and reason.hint == "lower it"


def test_nothing_is_released_without_a_figure_that_speaks_for_it():
    decision, checks = judged(before={}, after={})
    assert decision == "keep training"
    assert checks == {"nothing_measured": "keep training"}


def test_the_default_threshold_of_the_loss_is_marked_and_a_recipe_changes_it():
    decision, checks = judged(after={"loss": 1.8})
    assert (decision, checks) == ("keep training", {"loss_above_threshold": "keep training"})
    assert judged(VerdictConfig(max_loss=2.0), after={"loss": 1.8})[0] == "release"
    assert judged(VerdictConfig(max_loss=None), after={"loss": 1.8})[0] == "release"
    assert thresholds(VerdictConfig(), "sft")["max_loss"]["from"].startswith("default: ")
    assert thresholds(VerdictConfig(max_loss=2.0), "sft")["max_loss"] == {"value": 2.0, "from": "recipe"}
    assert "max_loss" not in thresholds(VerdictConfig(), "preference")


@pytest.mark.parametrize(
    ("check", "evidence", "expected"),
    [
        ("collapsed", {}, "roll back"),
        ("worse_than_start", {}, "roll back"),
        ("worse_than_best", {"best_goes_on": True}, "release"),
        ("worse_than_best", {"best_goes_on": False}, "roll back"),
        ("nothing_learned", {}, "keep training"),
        ("few_validation_rows", {}, "release"),
    ],
)
def test_findings_on_the_stage_speak_for_a_decision(check, evidence, expected):
    finding = Finding(check=check, severity="warning", message="m", evidence=evidence)
    assert judged(findings=[finding])[0] == expected


def test_a_loss_of_few_rows_decides_nothing():
    finding = Finding(check="worse_than_start", severity="error", message="m")
    decision, checks = judged(findings=[finding], validation_rows=8, deciding_rows=8)
    assert decision == "keep training"
    assert checks == {"nothing_measured": "keep training", "worse_than_start": None}


def test_the_rows_that_the_metric_is_of_decide_and_not_those_of_the_loss():
    worse = Finding(check="worse_than_start", severity="error", message="m")
    assert judged(findings=[worse], validation_rows=8, deciding_rows=200)[0] == "roll back"
    assert judged(findings=[worse], validation_rows=200, deciding_rows=8)[0] == "keep training"


def test_nothing_learned_is_muted_only_where_few_validation_rows_say_it():
    def checks(split: str) -> dict[str, str | None]:
        finding = Finding(check="nothing_learned", severity="warning", message="m", evidence={"split": split})
        return judged(findings=[finding], validation_rows=8, deciding_rows=8)[1]

    assert checks("validation")["nothing_learned"] is None
    assert checks("training")["nothing_learned"] == checks("reward")["nothing_learned"] == "keep training"


def test_a_stage_with_another_metric_has_learned_by_that_one_in_its_direction():
    def checks(before: float, after: float, metric: str = "reward") -> dict[str, str | None]:
        values = {"before": {"loss": 5.0, metric: before}, "after": {"loss": 0.5, metric: after}}
        return judged(kind="grpo", metric=metric, **values)[1]

    assert checks(0.2, 0.6) == {"learned": "release"}
    assert checks(0.6, 0.2) == checks(0.2, 0.22) == {"nothing_measured": "keep training", "not_better": None}
    assert checks(0.6, 0.2, "off_topic") == {"learned": "release"}


def test_bits_per_byte_are_shown_where_the_loss_is_that_of_next_tokens():
    def message(kind: str) -> str:
        (reason,) = reasons(StageEvidence(kind=kind, config=VerdictConfig(), **LEARNED))
        return reason.message

    assert message("sft") == "the stage has learned: bits per byte 2.000 → 0.300"
    assert message("preference") == "the stage has learned: validation loss 5.000 → 0.800"


FAULTS = {
    "prompt_targets": {"prompt_targets": 900},
    "trained_ends": {"trained_ends": 0},
    "misfits": {"misfits": 40},
}


@pytest.mark.parametrize("check", FAULTS)
def test_rows_that_teach_the_wrong_thing_roll_back(check):
    facts = TargetFacts(**{**vars(HEALTHY_ROWS), **FAULTS[check]})
    decision, checks = judged(targets=facts, after={})
    assert decision == "roll back"
    assert checks[check] == "roll back"
    expected = "keep training" if check == "misfits" else "roll back"
    assert judged(targets=facts)[1] == {check: expected, "learned": "release"}


def test_rows_that_mostly_say_who_the_assistant_is_are_to_be_mended():
    facts = TargetFacts(**{**vars(HEALTHY_ROWS), "identities": 40})
    assert judged(targets=facts) == ("keep training", {"identity_targets": "keep training", "learned": "release"})


def test_a_model_that_does_not_read_prompts_is_trained_on():
    facts = TargetFacts(**{**vars(HEALTHY_ROWS), "misfits": 60, "telling": 0.05})
    assert judged(targets=facts) == ("keep training", {"misfits": "keep training", "learned": "release"})


def test_a_rate_decides_only_where_its_interval_lies_beyond_the_threshold():
    assert judged(sets_after={"set": rates("ended", 2, 40)})[1]["ended"] == "keep training"
    assert judged(sets_after={"set": rates("ended", 3, 5)})[1]["ended"] is None
    assert "ended" not in judged(sets_after={"set": rates("ended", 39, 40)})[1]


def test_a_rate_that_was_better_before_the_stage_rolls_back():
    before, after = rates("off_topic", 1, 40, higher=False), rates("off_topic", 30, 40, higher=False)
    decision, checks = judged(sets_before={"set": before}, sets_after={"set": after})
    assert decision == "roll back"
    assert checks["off_topic"] == "roll back"


@pytest.mark.parametrize("check", MENDED)
def test_a_rate_that_a_stage_may_well_raise_is_trained_on(check):
    before, after = rates(check, 0, 40, higher=False), rates(check, 40, 40, higher=False)
    decision, checks = judged(sets_before={"set": before}, sets_after={"set": after})
    assert (decision, checks[check]) == ("keep training", "keep training")


def test_many_rates_that_grow_worse_by_chance_do_not_roll_back():
    def sets(count: int, right: int) -> dict[str, SetResult]:
        return {str(number): rates("off_topic", right, 40, higher=False) for number in range(count)}

    def decision(count: int) -> str | None:
        return judged(sets_before=sets(count, 20), sets_after=sets(count, 29))[1]["off_topic"]

    assert (decision(1), decision(20)) == ("roll back", "keep training")


def test_answers_of_a_pretrained_model_are_judged_where_the_recipe_sets_a_threshold():
    after = {"set": rates("ended", 0, 40)}
    assert judged(kind="pretrain", sets_after=after) == ("release", {"learned": "release"})
    assert judged(VerdictConfig(min_ended=0.5), kind="pretrain", sets_after=after)[0] == "keep training"
    assert "min_ended" not in thresholds(VerdictConfig(), "pretrain")


def test_a_task_that_cannot_decide_outweighs_nothing():
    before, after = rates("accuracy", 8, 15), rates("accuracy", 6, 15)
    decision, checks = judged(sets_before={"set": before}, sets_after={"set": after})
    assert decision == "release"
    assert checks == {"too_few_items": None, "learned": "release"}


def test_a_task_that_became_much_worse_rolls_back_and_a_little_worse_is_told():
    before = rates("accuracy", 300, 400)
    much, little = rates("accuracy", 200, 400), rates("accuracy", 275, 400)
    assert judged(sets_before={"set": before}, sets_after={"set": much})[0] == "roll back"
    decision, checks = judged(sets_before={"set": before}, sets_after={"set": little})
    assert decision == "release"
    assert checks["worse_answers"] is None


def test_sets_that_differ_are_not_compared():
    before, after = rates("accuracy", 300, 400), rates("accuracy", 100, 400)
    other = SetResult(**{**vars(before), "fingerprint": "b"})
    assert judged(sets_before={"set": other}, sets_after={"set": after}) == ("release", {"learned": "release"})


def test_forgetting_is_told_and_decides_by_the_recipe():
    def texts(level: float) -> SetResult:
        values = (level + np.random.default_rng(1).normal(0, 0.05, 50)).tolist()
        items = tuple(ItemResult(id=str(n), prompt="", values={"bits_per_byte": value}) for n, value in enumerate(values))
        metric = MetricValue(value=level, count=50, higher_is_better=False)
        return SetResult(name="set", kind="text", fingerprint="a", metrics={"bits_per_byte": metric}, items=items)

    sets = {"sets_before": {"set": texts(1.0)}, "sets_after": {"set": texts(1.5)}}
    assert judged(**sets) == ("release", {"learned": "release", "forgetting": None})
    assert judged(VerdictConfig(max_forgetting=0.2), **sets)[0] == "roll back"


def test_scripts_can_tell_the_decisions_apart():
    assert EXIT_CODES == {"release": 0, "keep training": 10, "roll back": 11}


# -- what training rows teach ------------------------------------------------------------------------------------------------


def examples(tokenizer: Tokenizer, change=lambda tokens, weights: weights, rows: int = 12) -> Examples:
    """Rows of two rounds, with their weights changed."""
    tokens, weights, offsets = [], [], [0]
    for number in range(rows):
        turns = [f"What is {number}?", f"It is a number, {number}.", "And more?", f"There is {number + 1}."]
        messages = [Message("user" if turn % 2 == 0 else "assistant", text) for turn, text in enumerate(turns)]
        own_tokens, own_weights = map(np.array, tokenizer.encode_conversation(messages))
        tokens.append(own_tokens)
        weights.append(change(own_tokens, own_weights))
        offsets.append(offsets[-1] + len(own_tokens))
    return Examples(
        tokens=np.concatenate(tokens),
        weights=np.concatenate(weights).astype(np.float32),
        offsets=np.array(offsets),
        sequences_per_example=1,
    )


def test_healthy_rows_train_answers_with_their_ends_alone(chatml):
    facts = training_targets(examples(chatml), chatml, None)
    assert facts is not None
    assert (facts.rows, facts.answers, facts.trained_ends, facts.prompt_targets) == (12, 24, 24, 0)
    assert facts.targets > 24
    assert facts.compared == 0


def test_unmasked_prompts_and_untrained_ends_are_counted(chatml):
    unmasked = training_targets(examples(chatml, lambda tokens, weights: np.ones_like(weights)), chatml, None)
    assert unmasked is not None
    assert unmasked.prompt_targets > 0.2 * unmasked.targets

    def without_ends(tokens, weights):
        return np.where(np.isin(tokens, list(chatml.stop_ids)), 0, weights)

    endless = training_targets(examples(chatml, without_ends), chatml, None)
    assert endless is not None
    assert (endless.answers, endless.trained_ends, endless.prompt_targets) == (24, 0, 0)


def test_the_header_of_answers_is_what_stands_behind_every_question(chatml):
    assert chatml.decode(answer_header(chatml)).endswith("assistant\n")


def test_answers_that_are_labelled_undesirable_are_not_looked_at(chatml):
    rows = examples(chatml, rows=12)
    facts = training_targets(replace(rows, labels=np.arange(12) < 4), chatml, None)
    assert facts is not None and facts.rows == 4
    assert training_targets(replace(rows, labels=np.zeros(12, bool)), chatml, None) is None


def test_answers_directly_behind_a_tool_result_are_no_prompts(chatml):
    end = next(iter(chatml.stop_ids))

    def with_result_and_answer(tokens, weights):
        return np.concatenate((tokens, chatml.encode(" 12 degrees"), chatml.encode("It is mild."), [end])), weights

    rows = examples(chatml, rows=12)
    tokens, weights, offsets = [], [], [0]
    for number in range(rows.count):
        more, own = with_result_and_answer(*rows.sequence(number))
        answer = len(chatml.encode("It is mild.")) + 1
        tokens.append(more)
        weights.append(np.concatenate((own, np.zeros(len(more) - len(own) - answer), np.ones(answer))))
        offsets.append(offsets[-1] + len(more))
    headless = replace(
        rows, tokens=np.concatenate(tokens), weights=np.concatenate(weights).astype(np.float32), offsets=np.array(offsets)
    )
    facts = training_targets(headless, chatml, None)
    assert facts is not None and facts.prompt_targets == 0


def test_labels_that_repeat_are_not_compared_with_other_prompts(chatml):
    model = decoder(chatml.vocab_size)

    def compared(answers: list[str]) -> int:
        pairs = [
            chatml.encode_conversation([Message("user", f"Question {number}?"), Message("assistant", answer)])
            for number, answer in enumerate(answers)
        ]
        offsets = np.cumsum([0, *(len(tokens) for tokens, _ in pairs)])
        rows = Examples(
            tokens=np.concatenate([tokens for tokens, _ in pairs]),
            weights=np.concatenate([weights for _, weights in pairs]).astype(np.float32),
            offsets=offsets,
            sequences_per_example=1,
        )
        facts = training_targets(rows, chatml, model)
        assert facts is not None
        return facts.compared

    assert compared(["yes", "no", "perhaps"] * 4) == 0
    assert compared([f"answer {number}" for number in range(12)]) == 12

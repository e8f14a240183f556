"""Checks of the validation data and of what is decided by it."""

import math
from collections.abc import Iterator

import numpy as np

from fledge.data import PackedDataset
from fledge.findings import Finding
from fledge.plan.critic.planned_stage import PlannedStage, counted
from fledge.plan.evaluation import (
    DEFAULT_EVALUATIONS,
    MIN_VALIDATION_ROWS,
    evaluation_interval,
    evaluations,
    validation_rows,
)

FORWARD = 1 / 3  # of the work of training on a token
LOOKED_AT = 200  # answers whose lengths are read
MOST_CUT = 0.5  # of these, longer than an answer may be
SPREAD = 1.5  # a share of rows is drawn by their content, so it is met only about


def few_validation_rows(planned: PlannedStage) -> Iterator[Finding]:
    """Validation data whose loss says more about its rows than about the model. An evaluation weighs each token once, whatever
    the batch, so rows that do not fill one do no further harm."""
    if planned.validation is None:
        return
    rows = validation_rows(planned.validation, planned.stage.evaluation.max_packed_rows)
    if rows >= MIN_VALIDATION_ROWS:
        return
    patch = None
    held_out = validation_rows(planned.validation, len(planned.validation.layout))
    share = SPREAD * MIN_VALIDATION_ROWS / (planned.train.examples.count + held_out)
    if held_out >= MIN_VALIDATION_ROWS:
        patch = planned.patch(evaluation__max_packed_rows=len(planned.validation.layout))
    elif share <= 0.5:
        patch = planned.of_other_data(data__validation=math.ceil(100 * share) / 100)
        patch = planned.with_warmups(patch, planned.plan.steps * (1 - share))
    yield planned.finding(
        "data.validation",
        f"{counted(rows, 'validation row')}: too few for their loss to tell whether the model gets better",
        f"set data.validation to a larger share, or a file of at least {MIN_VALIDATION_ROWS} rows",
        sure="certain",
        evidence={"rows": rows, "enough": MIN_VALIDATION_ROWS},
        patch=patch,
    )


def evaluation_not_reached(planned: PlannedStage) -> Iterator[Finding]:
    """An interval of evaluations that is longer than the stage."""
    every, steps = planned.stage.evaluation.every_steps, planned.plan.steps
    if planned.validation is None or every is None or every <= steps:
        return
    fewer = max(1, math.ceil(steps / DEFAULT_EVALUATIONS))
    yield planned.finding(
        "evaluation.every_steps",
        f"an evaluation is due every {every:,} steps, and the stage has {steps:,}: only its end is evaluated",
        f"set evaluation.every_steps to {fewer:,}, or leave it out for {DEFAULT_EVALUATIONS} evaluations",
        sure="certain",
        evidence={"every_steps": every, "steps": steps},
        patch=planned.patch(evaluation__every_steps=fewer),
    )


def costly_evaluation(planned: PlannedStage) -> Iterator[Finding]:
    """Evaluations with more work than the training between them; answers that are generated come on top of it."""
    if planned.validation is None:
        return
    every = evaluation_interval(planned.stage, planned.plan.steps)
    rows = min(len(planned.validation.layout), planned.stage.evaluation.max_packed_rows)
    read = every * planned.plan.effective_batch_rows * planned.stage.answers_per_example
    if FORWARD * rows <= read or evaluations(planned.stage, planned.plan.steps) <= DEFAULT_EVALUATIONS:
        return
    longer = max(math.ceil(10 * FORWARD * every * rows / read), math.ceil(planned.plan.steps / DEFAULT_EVALUATIONS))
    longer = min(planned.plan.steps, longer)
    yield planned.finding(
        "evaluation.every_steps",
        f"between two evaluations, {read:,} rows are trained on, and each reads {rows:,} validation rows: evaluations take "
        f"{FORWARD * rows / read:.1f} times as long as training",
        f"set evaluation.every_steps to {longer:,}, or evaluation.max_packed_rows to less",
        sure="certain",
        evidence={"every_steps": every, "validation_rows": rows, "training_rows": read},
        patch=planned.patch(evaluation__every_steps=longer),
    )


def idle_early_stopping(planned: PlannedStage) -> Iterator[Finding]:
    """A patience that the stage has too few evaluations for."""
    patience, count = planned.stage.early_stopping.patience, evaluations(planned.stage, planned.plan.steps)
    if patience is None or patience < count:
        return
    steps, less = planned.plan.steps, max(2, count // 3)
    every = max(1, steps // (3 * patience))
    oftener = planned.patch(evaluation__every_steps=every) if math.ceil(steps / every) > patience else None
    sooner = planned.patch(early_stopping__patience=less) if less < count else None
    hint = "leave early_stopping.patience out: the stage is too short to stop early"
    if sooner and oftener:
        hint = f"set early_stopping.patience to {less:,}, or evaluation.every_steps to {every:,}"
    elif sooner:
        hint = f"set early_stopping.patience to {less:,}"
    elif oftener:
        hint = f"set evaluation.every_steps to {every:,}"
    yield planned.finding(
        "early_stopping.patience",
        f"early_stopping.patience is {patience:,}, and the stage has only {count:,} evaluations: it cannot stop early",
        hint,
        sure="certain",
        evidence={"patience": patience, "evaluations": count},
        patch=sooner or oftener or planned.patch(early_stopping__patience=None),
    )


def hasty_early_stopping(planned: PlannedStage) -> Iterator[Finding]:
    """A stage that one worse evaluation ends, with several in an epoch: losses of neighbouring evaluations differ by chance,
    so one of them tells little (Prechelt 1998)."""
    count = evaluations(planned.stage, planned.plan.steps)
    if planned.stage.early_stopping.patience == 1 and count > 2 * max(1.0, planned.plan.epochs):
        yield planned.finding(
            "early_stopping.patience",
            f"one evaluation without a gain ends the stage, and there are {count:,} in {planned.plan.epochs:,.3g} epochs",
            "set early_stopping.patience to 3",
            sure="possible",
            evidence={"patience": 1, "evaluations": count, "epochs": planned.plan.epochs},
            patch=planned.patch(early_stopping__patience=3 if count > 3 else 2),
        )


def answer_lengths(data: PackedDataset) -> np.ndarray:
    """Tokens of the last answer of examples that are spread evenly over the data, int64 [up to LOOKED_AT]."""
    examples = data.examples
    numbers = np.unique(np.linspace(0, examples.count - 1, min(LOOKED_AT, examples.count)).astype(np.int64))
    lengths = []
    for number in numbers * examples.sequences_per_example:
        trained = np.flatnonzero(np.asarray(examples.sequence(int(number))[1])[::-1] > 0)
        breaks = np.flatnonzero(np.diff(trained) > 1)  # from the end: the first run is the last answer
        lengths.append(int(breaks[0]) + 1 if len(breaks) else len(trained))
    return np.asarray(lengths, np.int64)


def answers_cut_in_evaluation(planned: PlannedStage) -> Iterator[Finding]:
    """Answers that may not become as long as those that they are compared with."""
    answers = planned.stage.evaluation.generated_answers
    if answers is None or planned.validation is None:
        return
    lengths = answer_lengths(planned.validation)
    cut = float((lengths > answers.max_new_tokens).mean())
    if cut > MOST_CUT:
        enough = int(np.ceil(np.quantile(lengths, 0.95)))
        yield planned.finding(
            "evaluation.generated_answers.max_new_tokens",
            f"answers may have {answers.max_new_tokens:,} tokens, and {cut:.0%} of the validation rows' own are longer: their "
            "scores are those of cut answers",
            f"set evaluation.generated_answers.max_new_tokens to {enough:,}",
            sure="certain",
            evidence={"max_new_tokens": answers.max_new_tokens, "longer_share": cut, "quantile_95": enough},
            patch=planned.patch(evaluation__generated_answers__max_new_tokens=enough),
        )

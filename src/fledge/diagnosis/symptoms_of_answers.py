"""What can be seen in the figures of preferences and rewards, whatever its cause."""

from collections.abc import Callable

from fledge.diagnosis.case import Case
from fledge.diagnosis.evidence import seen
from fledge.diagnosis.thresholds import threshold
from fledge.findings import Finding


def _limit(name: str) -> float:
    return threshold("symptoms", name)


def _at_ln2(case: Case) -> Finding | None:
    """A preference loss that stays at ln 2, where it starts."""
    share, steps = case.value("curve/loss_at_ln2"), case.value("curve/last_step")
    if share is None or share < _limit("ln2_share") or (steps or 0) < _limit("fewest_preference_steps"):
        return None
    return seen(
        f"the loss is ln 2 = 0.6931 in {share:.0%} of the steps: the model prefers nothing",
        evidence={"share": share, "steps": steps},
    )


def _margins_flat(case: Case) -> Finding | None:
    """Margins that did not grow over a whole run."""
    last, error = case.value("curve/last_margins"), case.value("curve/margins_error")
    steps, loss = case.value("curve/last_step"), case.value("curve/last_loss")
    if last is None or error is None or (steps or 0) < _limit("fewest_preference_steps") or not case.value("plan/is_done"):
        return None
    if last + 4 * error >= _limit("least_margin"):
        return None
    return seen(
        f"the margins of the rewards did not grow: {last:+.4f} at the end",
        evidence={"margin": last, "error": error, "loss": loss},
    )


def _accuracy(case: Case) -> Finding | None:
    """Fewer than half of the training pairs in the right order at the end."""
    last, error = case.value("curve/last_accuracies"), case.value("curve/accuracies_error")
    steps = case.value("curve/last_step")
    if last is None or error is None or (steps or 0) < _limit("fewest_preference_steps"):
        return None
    if last + 4 * error >= _limit("least_accuracy"):
        return None
    return seen(f"only {last:.0%} of the pairs are in the right order at the end", evidence={"accuracy": last, "error": error})


def _reward_flat(case: Case) -> Finding | None:
    """A reward that did not rise over a whole run; it may have been as high as it can be at first."""
    first, last, error = (case.value(f"curve/{name}") for name in ("first_reward", "last_reward", "reward_error"))
    if first is None or last is None or error is None or not case.value("plan/is_done"):
        return None
    if (case.value("curve/last_step") or 0) < _limit("fewest_reward_steps") or last - first > _limit("reward_errors") * error:
        return None
    falls = last - first < -4 * error
    return seen(
        f"the mean reward {'fell' if falls else 'did not rise'}: {first:.3f} at first, {last:.3f} at the end",
        severity="warning" if falls else "info",
        evidence={"first": first, "last": last, "error": error},
    )


def _cut(case: Case) -> Finding | None:
    """Most answers cut at the end, more than at first."""
    first, last = case.value("curve/first_cut_answers"), case.value("curve/last_cut_answers")
    if first is None or last is None or last < _limit("cut_answers") or last < first:
        return None
    return seen(f"{last:.0%} of the answers are cut at the end, {first:.0%} at first", evidence={"first": first, "last": last})


ANSWER_FINDERS: dict[str, Callable[[Case], Finding | None]] = {
    "loss at ln 2": _at_ln2,
    "margins flat": _margins_flat,
    "accuracy below a half": _accuracy,
    "reward flat": _reward_flat,
    "answers cut": _cut,
}
"""Symptoms of preferences and rewards by name."""

"""The rules of the guards of policy stages, which read the events of updates and evaluations."""

import statistics

from fledge.monitor.rules import Event, GuardTrigger, Rule, trigger
from fledge.monitor.window_means import WindowMeans
from fledge.recipe.sections.policy_guards import (
    EntropyCollapseGuard,
    EqualGroupsGuard,
    LengthHackingGuard,
    RewardHackingGuard,
    TruncatedGuard,
)

REWARD, LENGTH, EQUAL = "train/reward", "train/completions/mean_length", "train/frac_reward_zero_std"
HELD_OUT = "eval/exact_match"
EVALUATIONS = ("initial_eval", "eval")  # events with scores of held-out answers
SOLVED_SHARE = 0.5  # of equal groups, above which little is left to explore


class OnceUntilRight(Rule):
    """Interface of the rules that trigger when something becomes wrong, and again only after it was right."""

    def __init__(self) -> None:
        self._is_wrong = False

    def _now_wrong(self, is_wrong: bool) -> bool:
        """Record whether it is wrong now; returns whether it has just become so."""
        was_wrong, self._is_wrong = self._is_wrong, is_wrong
        return is_wrong and not was_wrong


class RewardHacking(OnceUntilRight):
    """Triggers when the score of held-out answers has fallen by `min_fall` from its best value, while the mean training reward
    since the evaluation before is not lower than it was around the best one."""

    def __init__(self, config: RewardHackingGuard) -> None:
        super().__init__()
        self.config = config
        self.rewards: list[float] = []  # since the evaluation before
        self.mean: float | None = None  # of the updates before the last evaluation
        self.best: tuple[float, float | None, int] | None = None  # score, mean reward before it, step

    def update(self, event: Event) -> GuardTrigger | None:
        """A trigger at an evaluation."""
        if event["kind"] == "step" and event.get(REWARD) is not None:
            self.rewards.append(event[REWARD])
        score = event.get(HELD_OUT) if event["kind"] in EVALUATIONS else None
        if score is None:
            return None
        self.mean, self.rewards = statistics.fmean(self.rewards) if self.rewards else self.mean, []
        if self.best is None or score >= self.best[0]:
            self.best = score, self.mean, event["step"]
        best, reward_then, best_step = self.best
        wrong = (
            score <= best - self.config.min_fall and self.mean is not None and (reward_then is None or self.mean >= reward_then)
        )
        if not self._now_wrong(wrong):
            return None
        return trigger(
            "reward_hacking",
            self.config.action,
            f"exact answers to held-out prompts fell from {best:.1%} (step {best_step:,}) to {score:.1%}, while the mean "
            f"reward {'is' if reward_then is None else f'went from {reward_then:.3f} to'} {self.mean:.3f}",
            event,
            first_bad_step=best_step + 1,
            evidence={"score": score, "best_score": best, "reward": self.mean, "reward_then": reward_then},
            stop_scope="stage",
        )


class EntropyCollapse(OnceUntilRight):
    """Triggers when the entropy is below `min_fraction` of what it was at first, and most groups have equal rewards."""

    def __init__(self, config: EntropyCollapseGuard) -> None:
        super().__init__()
        self.config, self.means = config, WindowMeans(("train/entropy", EQUAL, REWARD), config.window)

    def update(self, event: Event) -> GuardTrigger | None:
        """A trigger at an update."""
        means = self.means.add(event)
        if means is None:
            return None
        (now, equal, reward), first = means, self.means.first[0]
        if not self._now_wrong(now < self.config.min_fraction * first and equal > SOLVED_SHARE):
            return None
        return trigger(
            "entropy_collapse",
            self.config.action,
            f"the entropy of the answers collapsed: {now:.4f} nats a token, {first:.4f} at first; {equal:.0%} of groups have "
            f"equal rewards, {reward:.3f} on average",
            event,
            evidence={"entropy": now, "first": first, "equal_groups": equal},
            stop_scope="stage",
        )


class LengthHacking(OnceUntilRight):
    """Triggers when the mean length of answers has changed by `factor`, and held-out answers are not better than at first."""

    def __init__(self, config: LengthHackingGuard) -> None:
        super().__init__()
        self.config, self.means = config, WindowMeans((LENGTH,), config.window)
        self.scores: list[float] = []
        self.correlation: float | None = None

    def update(self, event: Event) -> GuardTrigger | None:
        """A trigger at an update."""
        if event["kind"] in EVALUATIONS and event.get(HELD_OUT) is not None:
            self.scores.append(event[HELD_OUT])
        means = self.means.add(event)
        if means is None:
            return None
        self.correlation = event.get("train/completions/length_reward_correlation", self.correlation)
        (now,), (first,) = means, self.means.first
        ratio = now / max(first, 1e-9)
        changed = ratio >= self.config.factor or ratio <= 1 / self.config.factor
        better = len(self.scores) > 1 and self.scores[-1] > self.scores[0]
        if not self._now_wrong(changed and not better):
            return None
        related = "" if self.correlation is None else f"; reward and length inside groups correlate by {self.correlation:+.2f}"
        return trigger(
            "length_hacking",
            self.config.action,
            f"answers became {'longer' if ratio > 1 else 'shorter'} and not better: {now:.1f} tokens, {first:.1f} at first"
            f"{related}",
            event,
            evidence={"length": now, "first": first, "correlation": self.correlation},
            stop_scope="stage",
        )


class ShareAbove(OnceUntilRight):
    """Triggers when a share, averaged over `window` updates, is above `max_share`."""

    def __init__(self, check: str, key: str, config: TruncatedGuard | EqualGroupsGuard, message: str) -> None:
        """`message` has the places `share` and `reward`, the mean reward."""
        super().__init__()
        self.check, self.config, self.message = check, config, message
        self.means = WindowMeans((key, REWARD), config.window)

    def update(self, event: Event) -> GuardTrigger | None:
        """A trigger at an update."""
        means = self.means.add(event)
        if means is None:
            return None
        share, reward = means
        if not self._now_wrong(share > self.config.max_share):
            return None
        message = self.message.format(share=share, reward=reward)
        evidence = {"share": share, "reward": reward}
        return trigger(self.check, self.config.action, message, event, evidence=evidence, stop_scope="stage")


def truncated(config: TruncatedGuard) -> Rule:
    """The rule for answers that are cut."""
    key, message = "train/completions/clipped_ratio", "{share:.0%} of answers are cut at rollout.max_new_tokens"
    return ShareAbove("truncated", key, config, message)


def equal_groups(config: EqualGroupsGuard) -> Rule:
    """The rule for groups that teach nothing."""
    message = "{share:.0%} of groups have equal rewards ({reward:.3f} on average) and teach nothing"
    return ShareAbove("equal_groups", EQUAL, config, message)

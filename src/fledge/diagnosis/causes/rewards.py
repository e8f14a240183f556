"""Causes in training on rewards: groups, rewards, and what is gained by them instead of better answers."""

import numpy as np

from fledge.diagnosis.case import Case
from fledge.diagnosis.cause import Cause, Sign
from fledge.diagnosis.causes.consequences import BREAKS, LEARNS_LITTLE, STANDS_STILL
from fledge.diagnosis.causes.signs import (
    above,
    as_number,
    at_most,
    below,
    early,
    is_flat,
    late,
    late_level,
    number,
    other_setting,
    patch,
    sign,
    span,
)
from fledge.diagnosis.thresholds import threshold
from fledge.findings import Confidence
from fledge.training_log import Series

REWARDED = frozenset({"grpo"})

REWARD, DEVIATION, EQUAL = "train/reward", "train/reward_std", "train/frac_reward_zero_std"
LENGTH, CUT = "train/completions/mean_length", "train/completions/clipped_ratio"
HELD_OUT = "eval/exact_match"

NO_VARIANCE = "groups without variance"
WRONG_GROUPS = "groups wrongly formed"
KL = "KL blow-up"
ENTROPY = "entropy collapse"
CONSTANT = "reward constant"
LENGTHS = "length hacking"
TRUNCATED = "completions truncated"
HACKED = "reward hacking"
HIGH = "learning rate too high"


def _limit(name: str) -> float:
    return threshold("rewards", name)


def _long(case: Case, name: str) -> Series | None:
    """A figure of the log, if it has enough points to compare its beginning with its end."""
    series = case.log.get(name)
    return series if series is not None and len(series) >= _limit("few_points") else None


def _gain(case: Case, name: str) -> float | None:
    """How much higher a figure of the log is in its last quarter than in its first."""
    series = _long(case, name)
    return None if series is None else late(series) - early(series)


def _held_out_gain(case: Case) -> float | None:
    """How much better held-out answers are at the last evaluation than at the first."""
    series = case.log.get(HELD_OUT)
    return None if series is None or len(series) < 2 else float(series.values[-1] - series.values[0])


def _is_better(case: Case) -> bool | None:
    """Whether the answers got better: by held-out answers, else by rewards; None where neither was logged."""
    held_out, gain = _held_out_gain(case), _gain(case, REWARD)
    if held_out is not None:
        return held_out >= _limit("held_out_gain")
    return None if gain is None else gain >= _limit("reward_gain")


def constant(case: Case) -> Sign | None:
    """All rewards are the same number."""
    rewards, deviations = _long(case, REWARD), case.log.get(DEVIATION)
    if rewards is None or float(np.ptp(rewards.values)) > _limit("no_change"):
        return None
    if deviations is not None and float(deviations.values.max()) > _limit("no_change"):
        return None
    return sign(
        CONSTANT,
        "certain",
        f"all rewards of the log are {rewards.values[0]:.4g}: no answer is better than another, so nothing can be learned",
        hint="call the reward with ten good and ten bad answers by hand; look whether it finds the part of the answer it "
        "judges",
        proof="score good and bad answers: the rewards must differ",
        evidence={REWARD: float(rewards.values[0]), DEVIATION: None if deviations is None else float(deviations.values.max())},
        steps=span(rewards),
    )


def no_variance(case: Case) -> Sign | None:
    """Groups whose rewards are all equal from the beginning on."""
    shares = _long(case, EQUAL)
    if shares is None:
        return None
    first, last, reward = early(shares), late(shares), late_level(case, REWARD)
    confidence, gain = above("rewards", "equal_groups", min(first, last)), _gain(case, REWARD)
    if confidence is None:
        return None
    if gain is not None and gain >= _limit("reward_gain"):
        confidence = "possible"
    level = "" if reward is None else f", at a mean reward of {reward:.3f}"
    return sign(
        NO_VARIANCE,
        confidence,
        f"in {min(first, last):.1%} of the groups all answers have equal rewards, from the beginning on{level}: they teach "
        "nothing",
        hint="take prompts that the model answers rightly sometimes; more answers to a prompt, a higher temperature, or a "
        "reward "
        "with steps between right and wrong",
        proof="draw answers with the changed settings: more than half of the groups must have different rewards",
        evidence={EQUAL: last, "equal groups at first": first, REWARD: reward, "reward gain": gain},
        patch=patch(case, rollout__num_generations=_more_answers(case)),
        alternatives={CONSTANT: "the rewards of good and bad answers", ENTROPY: "the entropy at the beginning"},
        steps=span(shares),
    )


def _more_answers(case: Case) -> int | None:
    now = case.settings.num_generations
    return None if not now else 2 * int(now)


def wrong_groups(case: Case) -> Sign | None:
    """Advantages that are not those of an answer among the answers to its own prompt."""
    aligned, fall = number(case, "probe/advantage_alignment"), _fall_of_reward(case)
    confidence = below("rewards", "alignment", aligned)
    if aligned is not None:
        what = f"the correlation of advantages with the reward above the prompt's mean is {aligned:.2f}, and must be near 1"
    elif fall is not None:
        confidence, what = fall
    else:
        confidence, what = (
            _all_differ(case),
            "answers of a group never agree, rewards differ in all groups, and nothing is learned",
        )
    if confidence is None:
        return None
    return sign(
        WRONG_GROUPS,
        confidence,
        f"advantages have the wrong sign, or are those of answers to other prompts: {what}",
        hint="keep the answers to a prompt together: repeat each prompt as often as answers are drawn, and shuffle prompts, "
        "not "
        "answers",
        proof="print the prompts of one group: they must be one and the same",
        evidence={"probe/advantage_alignment": aligned, EQUAL: late_level(case, EQUAL), "reward gain": _gain(case, REWARD)},
        alternatives={} if aligned is not None else {"learning rate too low": "the learning rate against the plan"},
        steps=span(case.log.get(EQUAL)),
    )


def _fall_of_reward(case: Case) -> tuple[Confidence, str] | None:
    """How sure it is, by a mean reward that falls far beyond its noise, that updates make rewarded answers rarer. Too large a
    rate breaks a policy too, so it must be inside of its band."""
    first, last, error = (case.value(f"curve/{name}") for name in ("first_reward", "last_reward", "reward_error"))
    factor = case.value("plan/rate_factor")
    if first is None or last is None or not error or (factor is not None and factor >= threshold("rates", "far")):
        return None
    errors = (first - last) / error
    confidence = above("rewards", "fall_errors", errors)
    if confidence is None:
        return None
    return (
        confidence,
        f"the mean reward fell from {first:.3f} to {last:.3f}, by {errors:.0f} standard errors",
    )


def _all_differ(case: Case) -> Confidence | None:
    """What the log alone shows of wrong groups: all answers of a group differ, no group has equal rewards, no gain."""
    unique, equal, rewards = late_level(case, "train/completions/unique_fraction"), late_level(case, EQUAL), _long(case, REWARD)
    if unique is None or equal is None or rewards is None:
        return None
    is_so = unique >= _limit("all_unique") and equal <= _limit("none_equal") and is_flat(rewards)
    return "possible" if is_so else None


def kl_blow_up(case: Case) -> Sign | None:
    """The policy leaves its start model behind."""
    kl = late_level(case, "train/kl")
    confidence = above("rewards", "kl", kl)
    if kl is None or confidence is None:
        return None
    better = _is_better(case)
    if better is not False:
        confidence = at_most("possible", confidence) or "possible"
    beta = case.settings.beta
    return sign(
        KL,
        confidence,
        f"the divergence from the start model is {kl:.2f} nats a token at the end of the log"
        f"{', and answers do not get better' if better is False else ''}",
        hint="lower the learning rate, raise beta, make fewer updates with the answers of one rollout, or clip gradients",
        proof="go on from an earlier checkpoint with the changed settings: the divergence must stay below 0.1 nats a token",
        evidence={"train/kl": kl, "beta": beta, "held-out gain": _held_out_gain(case), "reward gain": _gain(case, REWARD)},
        patch=None if not case.settings.learning_rate else patch(case, optimizer__learning_rate=_third(case)),
        alternatives={HIGH: "the learning rate against the plan"},
        steps=span(case.log.get("train/kl")),
    )


def _third(case: Case) -> float | None:
    rate = case.settings.learning_rate
    return None if rate is None else float(f"{rate / 3:.2g}")


def entropy_collapse(case: Case) -> Sign | None:
    """Answers become certain before they became good."""
    entropies = _long(case, "train/entropy")
    if entropies is None or _is_better(case) is not False:
        return None
    first, last = early(entropies), late(entropies)
    if first <= 0:
        return None
    confidence = below("rewards", "entropy_left", max(0.0, last) / first)
    if confidence is None:
        return None
    return sign(
        ENTROPY,
        confidence,
        f"the entropy of the answers fell from {first:.3f} to {last:.4f} nats a token, and answers did not get better: nothing "
        "new "
        "is tried",
        hint="lower the learning rate, clip less above 1 (epsilon_high 0.28), draw at temperature 1, or go back to an earlier "
        "checkpoint",
        proof="go on from an earlier checkpoint with the changed settings: entropy must stay above a third of its first value",
        evidence={"entropy at first": first, "train/entropy": last, "reward gain": _gain(case, REWARD)},
        patch=patch(case, optimizer__learning_rate=_third(case)),
        alternatives={CONSTANT: "whether rewards differ", NO_VARIANCE: "the share of equal groups at the beginning"},
        steps=span(entropies),
    )


def length_hacking(case: Case) -> Sign | None:
    """Answers become longer or shorter, and not better."""
    lengths = _long(case, LENGTH)
    held_out = _held_out_gain(case)
    if lengths is None or (held_out is not None and held_out >= _limit("held_out_gain")):
        return None
    first, last = early(lengths), late(lengths)
    if first <= 0 or last <= 0:
        return None
    ratio = last / first
    confidence = above("rewards", "length_change", max(ratio, 1 / ratio))
    if confidence is None:
        return None
    related = late_level(case, "train/completions/length_reward_correlation")
    follows = related is not None and related * (1 if ratio > 1 else -1) >= _limit("length_correlation")
    is_meant = any(name.startswith("train/rewards/") and "length" in name for name in case.log.series)
    if held_out is None or not follows or is_meant:
        confidence = at_most("possible", confidence) or "possible"
    told = "" if related is None else f"; reward and length inside groups are correlated by {related:+.2f}"
    return sign(
        LENGTHS,
        confidence,
        f"answers became {'longer' if ratio > 1 else 'shorter'} ({first:.0f} to {last:.0f} tokens) and not better{told}",
        hint="take the length out of the reward, add a reward for the length that is wanted, or divide the loss by a constant "
        "(dr_grpo)",
        proof="compare held-out answers of this checkpoint with those of the start, at equal lengths",
        evidence={"length at first": first, LENGTH: last, "correlation": related, "held-out gain": held_out},
        severity="warning",
        steps=span(lengths),
    )


def truncated(case: Case) -> Sign | None:
    """Answers are cut before their end. Where they grew up to the limit while training went on, that they are cut follows from
    what made them longer, and the limit is only possibly too small."""
    share, ratio = late_level(case, CUT), case.log.get(CUT)
    confidence = above("rewards", "cut", share)
    if share is None or confidence is None or ratio is None:
        return None
    before = float(np.mean(ratio.values[: max(1, int(_limit("first_part") * len(ratio)))]))  # what the start model does
    has_grown = before < _limit("cut_grown") * share
    if has_grown:
        confidence = at_most("possible", confidence) or "possible"
    limit = as_number(other_setting(case, "max_new_tokens", "max_completion_length"))
    longest = case.log.get("train/completions/max_length")
    most = limit or (None if longest is None else float(longest.values.max()))
    return sign(
        TRUNCATED,
        confidence,
        f"{share:.1%} of the drawn answers are cut{'' if most is None else f' at {most:.0f} tokens'}"
        f"{f', {before:.1%} at first' if has_grown else ''}: their rewards are those of unfinished answers",
        hint="let answers be longer (max_new_tokens, max_completion_length), reward short ones, or leave cut ones out of the "
        "loss",
        proof="draw answers with twice the tokens: if most end now, the limit was the cause",
        evidence={CUT: share, "cut at first": before, "longest": most, "probe/base_ended": number(case, "probe/base_ended")},
        patch=patch(case, rollout__max_new_tokens=None if most is None else 2 * int(most)),
        severity="warning",
        alternatives={
            "answers never end": "share of answers of the start model that end themselves",
            **({HIGH: "the learning rate against the plan"} if has_grown else {}),
        },
        steps=span(case.log.get(CUT)),
    )


def hacked(case: Case) -> Sign | None:
    """Rewards rise while answers get worse."""
    gain, scores = _gain(case, REWARD), case.log.get(HELD_OUT)
    repeats, before = number(case, "probe/repetition"), number(case, "probe/base_repetition")
    if gain is None or gain <= _limit("reward_rise"):
        return None
    fall = None if scores is None else float(scores.values.max() - scores.values[-1])
    more = None if repeats is None or before is None else repeats - before
    worse, loops = above("rewards", "held_out_fall", fall), above("rewards", "repetition_rise", more)
    confidence = worse or loops
    if confidence is None:
        return None
    what = f"exact held-out answers fell by {fall:.1%} from their best" if worse else f"repetition rose by {more:.1%}"
    return sign(
        HACKED,
        confidence,
        f"the mean reward rose by {gain:.3f}, and {what}: the reward is gained by other means than good answers",
        hint="read the answers with the highest rewards; reward what is wanted (exact answers), and penalise what you find",
        proof="score fifty answers by hand and compare them with the rewards",
        evidence={"reward gain": gain, "held-out fall": fall, "probe/repetition": repeats, "probe/base_repetition": before},
        alternatives={KL: "the divergence from the start model"},
        steps=span(case.log.get(REWARD), scores),
    )


CAUSES = (
    Cause(
        name=CONSTANT,
        category="rewards",
        find=constant,
        kinds=REWARDED,
        explains=STANDS_STILL | {ENTROPY, NO_VARIANCE, "tensors that do not learn"},
        rank=5,
    ),
    Cause(
        name=NO_VARIANCE,
        category="rewards",
        find=no_variance,
        kinds=REWARDED,
        explains=STANDS_STILL | {ENTROPY},
        setting=True,
        rank=30,
    ),
    Cause(
        name=WRONG_GROUPS,
        category="rewards",
        find=wrong_groups,
        kinds=REWARDED,
        explains=LEARNS_LITTLE | BREAKS | {ENTROPY, KL, LENGTHS, TRUNCATED, "reward flat"},
        rank=6,
    ),
    Cause(
        name=KL,
        category="rewards",
        find=kl_blow_up,
        kinds=REWARDED,
        explains=BREAKS | {ENTROPY, "forgetting", "reward flat"},
        setting=True,
        rank=40,
    ),
    Cause(
        name=ENTROPY,
        category="rewards",
        find=entropy_collapse,
        kinds=REWARDED,
        explains=frozenset({"reward flat", "same answer to everything"}),
        setting=True,
        rank=45,
    ),
    Cause(
        name=TRUNCATED,
        category="rewards",
        find=truncated,
        kinds=REWARDED,
        explains=frozenset({CONSTANT, NO_VARIANCE, LENGTHS, "answers cut", "answers cut by the token limit", "reward flat"}),
        setting=True,
        rank=20,
    ),
    Cause(
        name=HACKED,
        category="rewards",
        find=hacked,
        kinds=REWARDED,
        explains=frozenset({LENGTHS, "answers repeat themselves", "forgetting", "same answer to everything"}),
        rank=35,
    ),
    Cause(name=LENGTHS, category="rewards", find=length_hacking, kinds=REWARDED, explains=frozenset({"answers cut"}), rank=42),
)
"""The causes in training on rewards."""

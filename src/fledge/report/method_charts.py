"""The figures of stages that learn from preferences and from rewards."""

from fledge.report.figures import Chart, Series, if_recorded, noisy, percent, training, validation
from fledge.report.i18n import UNITS, Text
from fledge.report.records import Stage
from fledge.report.series import points
from fledge.report.stage_values import with_first_evaluation


def policy_charts(stage: Stage) -> list[Chart]:
    """Rewards, exact answers, entropy, lengths, and the shares of equal groups and cut answers, as far as the stage recorded
    them."""
    steps = stage.events.steps
    if not points(steps, "train/reward"):
        return []
    equal = noisy(
        percent(points(steps, "train/frac_reward_zero_std")), "main", Text("groups with equal rewards", "奖励全同的组")
    )
    cut = noisy(percent(points(steps, "train/completions/clipped_ratio")), "bad", Text("cut answers", "被截断的回答"))
    exact = validation(percent(with_first_evaluation(stage, "exact_match")))
    return if_recorded(
        Chart(name="reward", title=Text("Reward", "奖励"), unit=UNITS[""], series=_train_and_validation(stage, "reward")),
        Chart(name="exact", title=Text("Exact answers", "完全正确的回答"), unit=UNITS["%"], series=exact, from_zero=True),
        Chart(
            name="entropy",
            title=Text("Entropy", "熵"),
            unit=UNITS["nats/token"],
            series=_train(stage, "train/entropy"),
            from_zero=True,
        ),
        Chart(
            name="lengths",
            title=Text("Length of answers", "回答长度"),
            unit=UNITS["tokens"],
            series=_train(stage, "train/completions/mean_length"),
            from_zero=True,
        ),
        Chart(
            name="groups", title=Text("Groups and cut answers", "组与截断"), unit=UNITS["%"], series=equal + cut, from_zero=True
        ),
        Chart(
            name="kl",
            title=Text("Divergence from the start", "与起点的散度"),
            unit=UNITS["nats/token"],
            series=_train(stage, "train/kl"),
        ),
    )


def preference_charts(stage: Stage) -> list[Chart]:
    """Rewards, reward margins, preference accuracy, log-probabilities and drift, as far as the stage recorded them."""
    accuracy, margin = Text("Preference accuracy", "偏好准确率"), Text("Reward margin", "奖励差")
    policy = bool(points(stage.events.steps, "train/reward"))
    return if_recorded(
        Chart(name="rewards", title=Text("Rewards", "奖励"), unit=UNITS["nats"], series=_both(stage, "rewards")),
        Chart(name="margins", title=margin, unit=UNITS["nats"], series=_train_and_validation(stage, "rewards/margins")),
        Chart(
            name="accuracy",
            title=accuracy,
            unit=UNITS["%"],
            series=_train_and_validation(stage, "rewards/accuracies", 100),
            from_zero=True,
        ),
        Chart(name="logps", title=Text("Log-probability", "对数概率"), unit=UNITS["nats"], series=_both(stage, "logps")),
        Chart(
            name="drift",
            title=Text("Drift from the reference", "相对参考模型的漂移"),
            unit=UNITS["nats/token"],
            series=_both(stage, "drift"),
        ),
        Chart(
            name="chosen_loss",
            title=Text("Loss of the chosen answers", "较好回答的损失"),
            unit=UNITS["nats/token"],
            series=_train(stage, "train/sft_loss"),
        ),
        Chart(
            name="reference-kl",
            title=Text("Estimated KL divergence from the reference", "与参考模型的 KL 散度（估计）"),
            unit=UNITS["nats"],
            series=() if policy else _train(stage, "train/kl"),
        ),
    )


def _train(stage: Stage, key: str) -> tuple[Series, ...]:
    return training(points(stage.events.steps, key))


def _train_and_validation(stage: Stage, name: str, scale: float = 1) -> tuple[Series, ...]:
    train = [(step, value * scale) for step, value in points(stage.events.steps, f"train/{name}")]
    evaluated = [(step, value * scale) for step, value in with_first_evaluation(stage, name)]
    return training(train) + validation(evaluated)


def _both(stage: Stage, group: str) -> tuple[Series, ...]:
    """The curves of the chosen and of the rejected answers."""
    chosen = noisy(points(stage.events.steps, f"train/{group}/chosen"), "good", Text("chosen", "被选"))
    rejected = noisy(points(stage.events.steps, f"train/{group}/rejected"), "bad", Text("rejected", "被拒"))
    return chosen + rejected

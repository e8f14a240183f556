"""The curves of one stage as Plotly figures. The page colours the traces by their role and picks the language."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fledge.report.i18n import UNITS, Text, unit_text
from fledge.report.records import Stage
from fledge.report.series import Points, downsample, points, smooth, smoothing_span
from fledge.report.summary_table import metric, preference_accuracy


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One figure. Empty `traces` mean that nothing was recorded for it; `log` and `from_zero` describe the y axis."""

    name: str
    title: Text
    unit: Text
    traces: tuple[dict[str, object], ...]
    log: bool = False
    from_zero: bool = False
    wide: bool = False

    def specification(self) -> dict[str, object]:
        """The figure as JSON values for the page's script."""
        return {
            "title": self.title._asdict(),
            "unit": self.unit._asdict(),
            "log": self.log,
            "from_zero": self.from_zero,
            "traces": list(self.traces),
        }


def stage_charts(stage: Stage) -> list[Chart]:
    """All figures of a stage, in the order of the page."""
    steps, resources = stage.events.steps, stage.events.resources
    charts = [
        Chart(name="loss", title=Text("Loss", "损失"), unit=unit_text(stage.loss_unit), traces=loss_traces(stage), wide=True),
        *preference_charts(stage),
        *policy_charts(stage),
        *if_recorded(accuracy_chart(stage)),
        *if_recorded(prompts_chart(stage)),
        Chart(
            name="learning-rate",
            title=Text("Learning rate", "学习率"),
            unit=Text("per step", "每步"),
            traces=single_trace(steps, "train/lr"),
            from_zero=True,
        ),
        Chart(
            name="gradient-norm",
            title=Text("Gradient norm", "梯度范数"),
            unit=Text("log scale", "对数轴"),
            traces=gradient_traces(stage),
            log=True,
        ),
        Chart(
            name="speed",
            title=Text("Speed", "速度"),
            unit=UNITS["tokens/s"],
            traces=single_trace(resources, "system/tokens_per_second"),
            from_zero=True,
        ),
        memory_chart(stage),
        *engine_charts(stage),
    ]
    return charts


def engine_charts(stage: Stage) -> list[Chart]:
    """Charts of machine utilisation, update size, expert load and fp16 loss scale. Charts without records are left out."""
    steps, resources = stage.events.steps, stage.events.resources
    mfu = percent(points(resources, "system/mfu"))
    return [
        *if_recorded(
            Chart(
                name="mfu",
                title=Text("Share of the measured matrix-product peak (MFU)", "占实测矩阵乘峰值的比例（MFU）"),
                unit=UNITS["%"],
                traces=trace(mfu, "main", Text("", "")),
                from_zero=True,
            )
        ),
        *if_recorded(update_ratio_chart(stage)),
        *if_recorded(expert_load_chart(stage)),
        *if_recorded(
            Chart(
                name="loss-scale",
                title=Text("Loss scale (fp16)", "损失缩放（fp16）"),
                unit=Text("log scale", "对数轴"),
                traces=single_trace(steps, "train/loss_scale"),
                log=True,
            )
        ),
    ]


def update_ratio_chart(stage: Stage) -> Chart:
    """The size of an update relative to the weights (root mean square), for attention and feed-forward weights."""
    steps = stage.events.steps
    attention = trace(points(steps, "update_ratio/attention"), "main", Text("attention", "注意力"))
    feed_forward = trace(points(steps, "update_ratio/mlp"), "eval", Text("feed-forward", "前馈网络"))
    return Chart(
        name="update",
        title=Text("Update ÷ weights (RMS)", "更新量 ÷ 权重（均方根）"),
        unit=Text("log scale", "对数轴"),
        traces=attention + feed_forward,
        log=True,
    )


def expert_load_chart(stage: Stage) -> Chart:
    """The load of the busiest and of the idlest expert of a mixture, relative to an even load."""
    steps = stage.events.steps
    busiest = trace(points(steps, "router/max_load"), "bad", Text("busiest", "最忙"))
    idlest = trace(points(steps, "router/min_load"), "good", Text("idlest", "最闲"))
    return Chart(
        name="experts",
        title=Text("Load of an expert", "专家负载"),
        unit=Text("1 = even", "1 = 均衡"),
        traces=busiest + idlest,
        from_zero=True,
    )


def if_recorded(chart: Chart) -> list[Chart]:
    """A list of the chart, or an empty list when nothing was recorded for it."""
    return [chart] if chart.traces else []


def trace(curve: Points, role: str, name: Text) -> tuple[dict[str, object], ...]:
    """A tuple of one Plotly trace, downsampled and rounded; empty when the curve has no points."""
    if not curve:
        return ()
    shown = downsample(curve)
    return (
        {
            "x": [six_figures(step) for step, _ in shown],
            "y": [six_figures(value) for _, value in shown],
            "role": role,
            "name": name._asdict(),
        },
    )


def six_figures(value: float) -> float | int:
    """The value rounded to six significant figures, which keeps the page small and changes nothing on the screen."""
    short = float(f"{value:.6g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def single_trace(rows: Iterable[Mapping[str, object]], key: str) -> tuple[dict[str, object], ...]:
    """The only trace of a figure, without a name."""
    return trace(points(rows, key), "main", Text("", ""))


def smoothed(curve: Points, role: str, name: Text) -> tuple[dict[str, object], ...]:
    """Two traces: the raw curve, faint, and its moving average. A curve of fewer than five points is shown raw."""
    if len(curve) < 5:
        return trace(curve, role, name)
    span = smoothing_span(len(curve))
    raw = trace(curve, f"{role}-faint", Text(f"{name.en}, raw", f"{name.zh}，原始"))
    mean = Text(f"{name.en}, {span}-point average", f"{name.zh}，{span} 点平均")
    return raw + trace(smooth(curve), role, mean)


def loss_traces(stage: Stage) -> tuple[dict[str, object], ...]:
    """The training loss, raw and smoothed, and the validation loss where it is the same measure."""
    if points(stage.events.steps, "train/reward"):
        return smoothed(points(stage.events.steps, "train/loss"), "main", Text("train", "训练"))
    return smoothed(points(stage.events.steps, "train/loss"), "main", Text("train", "训练")) + trace(
        with_first_evaluation(stage, "loss"), "eval", Text("validation", "验证")
    )


def policy_charts(stage: Stage) -> list[Chart]:
    """Rewards, exact answers, entropy, lengths, and the shares of equal groups and cut answers, as far as the stage recorded
    them."""
    steps, train, validation = stage.events.steps, Text("train", "训练"), Text("validation", "验证")

    if not points(steps, "train/reward"):
        return []
    shares = [
        (Text("groups with equal rewards", "奖励全同的组"), "main", "train/frac_reward_zero_std"),
        (Text("cut answers", "被截断的回答"), "bad", "train/completions/clipped_ratio"),
    ]
    rewards = smoothed(points(steps, "train/reward"), "main", train) + trace(
        with_first_evaluation(stage, "reward"), "eval", validation
    )
    exact = trace(percent(with_first_evaluation(stage, "exact_match")), "eval", validation)
    charts = [
        Chart(name="reward", title=Text("Reward", "奖励"), unit=UNITS[""], traces=rewards),
        Chart(name="exact", title=Text("Exact answers", "完全正确的回答"), unit=UNITS["%"], traces=exact, from_zero=True),
        Chart(
            name="entropy",
            title=Text("Entropy", "熵"),
            unit=UNITS["nats/token"],
            traces=smoothed(points(steps, "train/entropy"), "main", train),
            from_zero=True,
        ),
        Chart(
            name="lengths",
            title=Text("Length of answers", "回答长度"),
            unit=UNITS["tokens"],
            traces=smoothed(points(steps, "train/completions/mean_length"), "main", train),
            from_zero=True,
        ),
        Chart(
            name="groups",
            title=Text("Groups and cut answers", "组与截断"),
            unit=UNITS["%"],
            traces=tuple(curve for name, role, key in shares for curve in smoothed(percent(points(steps, key)), role, name)),
            from_zero=True,
        ),
        Chart(
            name="kl",
            title=Text("Divergence from the start", "与起点的散度"),
            unit=UNITS["nats/token"],
            traces=smoothed(points(steps, "train/kl"), "main", train),
        ),
    ]
    return [chart for chart in charts if chart.traces]


def percent(curve: Points) -> Points:
    """A curve of shares in percent."""
    return [(step, share * 100) for step, share in curve]


def with_first_evaluation(stage: Stage, name: str) -> Points:
    """The evaluations during training, preceded by the evaluation before the first step (at step 0) when there is one."""
    curve = points(stage.events.evals, f"eval/{name}")
    start = preference_accuracy(stage, "before") if name == "rewards/accuracies" else metric(stage, name, "before")
    if start is not None and abs(start) < float("inf") and not any(step <= 0 for step, _ in curve):
        return [(0.0, start), *curve]
    return curve


def accuracy_chart(stage: Stage) -> Chart:
    """The validation token accuracy in percent."""
    curve = percent(with_first_evaluation(stage, "token_accuracy"))
    title = Text("Token accuracy", "词元准确率")
    return Chart(
        name="token-accuracy",
        title=title,
        unit=UNITS["%"],
        traces=trace(curve, "eval", Text("validation", "验证")),
        from_zero=True,
    )


def prompts_chart(stage: Stage) -> Chart:
    """The share of prompt tests that pass, and the repetition of their answers, in percent."""
    curves = [
        (Text("passed", "通过"), "good", "prompt_tests/pass_rate"),
        (Text("repetition", "重复"), "bad", "prompt_tests/repetition"),
    ]
    traces = tuple(
        curve for name, role, key in curves for curve in trace(percent(points(stage.events.prompt_tests, key)), role, name)
    )
    return Chart(name="prompts", title=Text("Prompt tests", "提示测试"), unit=UNITS["%"], traces=traces, from_zero=True)


def gradient_traces(stage: Stage) -> tuple[dict[str, object], ...]:
    """The gradient norm, raw and smoothed. A log axis cannot show zero, so such points are left out."""
    curve = [(step, norm) for step, norm in points(stage.events.steps, "train/grad_norm") if norm > 0]
    return smoothed(curve, "main", Text("norm", "范数"))


def memory_chart(stage: Stage) -> Chart:
    """The memory in use, in MiB or GiB."""
    curve = points(stage.events.resources, "system/memory_bytes")
    scale, unit = (2**30, "GiB") if max((size for _, size in curve), default=0.0) >= 2**30 else (2**20, "MiB")
    scaled = [(step, size / scale) for step, size in curve]
    return Chart(
        name="memory",
        title=Text("Memory", "内存"),
        unit=Text(unit, unit),
        traces=trace(scaled, "main", Text("", "")),
        from_zero=True,
    )


def _margins(traces: tuple[dict[str, object], ...]) -> Chart:
    return Chart(name="margins", title=Text("Reward margin", "奖励差"), unit=UNITS["nats"], traces=traces)


def preference_charts(stage: Stage) -> list[Chart]:
    """Rewards, reward margins, preference accuracy, log-probabilities and drift, as far as the stage recorded them."""
    chosen, rejected = Text("chosen", "被选"), Text("rejected", "被拒")
    train, validation = Text("train", "训练"), Text("validation", "验证")

    def chosen_and_rejected(group: str) -> tuple[dict[str, object], ...]:
        return smoothed(points(stage.events.steps, f"train/{group}/chosen"), "good", chosen) + smoothed(
            points(stage.events.steps, f"train/{group}/rejected"), "bad", rejected
        )

    def train_and_validation(name: str, scale: float) -> tuple[dict[str, object], ...]:
        training_curve = [(step, value * scale) for step, value in points(stage.events.steps, f"train/{name}")]
        validation_curve = [(step, value * scale) for step, value in with_first_evaluation(stage, name)]
        return smoothed(training_curve, "main", train) + trace(validation_curve, "eval", validation)

    charts = [
        Chart(name="rewards", title=Text("Rewards", "奖励"), unit=UNITS["nats"], traces=chosen_and_rejected("rewards")),
        _margins(train_and_validation("rewards/margins", 1)),
        Chart(
            name="accuracy",
            title=Text("Preference accuracy", "偏好准确率"),
            unit=UNITS["%"],
            traces=train_and_validation("rewards/accuracies", 100),
            from_zero=True,
        ),
        Chart(name="logps", title=Text("Log-probability", "对数概率"), unit=UNITS["nats"], traces=chosen_and_rejected("logps")),
        Chart(
            name="drift",
            title=Text("Drift from the reference", "相对参考模型的漂移"),
            unit=UNITS["nats/token"],
            traces=chosen_and_rejected("drift"),
        ),
        Chart(
            name="chosen_loss",
            title=Text("Loss of the chosen answers", "较好回答的损失"),
            unit=UNITS["nats/token"],
            traces=smoothed(points(stage.events.steps, "train/sft_loss"), "main", train),
        ),
        Chart(
            name="kl",
            title=Text("Estimated KL divergence from the reference", "与参考模型的 KL 散度（估计）"),
            unit=UNITS["nats"],
            traces=smoothed(points(stage.events.steps, "train/kl"), "main", train),
        ),
    ]
    return [chart for chart in charts if chart.traces]

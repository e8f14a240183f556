"""Curves of one stage as plain Plotly figures; the page colours them by role and picks the language."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fledge.report.i18n import UNITS, Text, unit_text
from fledge.report.records import Stage
from fledge.report.series import Points, points, smooth, smoothing_span, thin
from fledge.report.summary_table import metric, preference_accuracy


@dataclass(frozen=True)
class Chart:
    """One figure; `traces` empty means nothing was recorded for it."""

    name: str
    title: Text
    unit: Text
    traces: tuple[dict[str, object], ...]
    log: bool = False
    from_zero: bool = False
    wide: bool = False

    def specification(self) -> dict[str, object]:
        return {
            "title": self.title._asdict(),
            "unit": self.unit._asdict(),
            "log": self.log,
            "from_zero": self.from_zero,
            "traces": list(self.traces),
        }


def stage_charts(stage: Stage) -> list[Chart]:
    steps, resources = stage.events.steps, stage.events.resources
    charts = [
        Chart("loss", Text("Loss", "损失"), unit_text(stage.loss_unit), loss_traces(stage), wide=True),
        *preference_charts(stage),
        *optional(accuracy_chart(stage)),
        *optional(prompts_chart(stage)),
        Chart(
            "learning-rate",
            Text("Learning rate", "学习率"),
            Text("per step", "每步"),
            single(steps, "train/lr"),
            from_zero=True,
        ),
        Chart(
            "gradient-norm",
            Text("Gradient norm", "梯度范数"),
            Text("log scale", "对数轴"),
            gradient_traces(stage),
            log=True,
        ),
        Chart("speed", Text("Speed", "速度"), UNITS["tokens/s"], single(resources, "system/tokens_per_second"), from_zero=True),
        memory_chart(stage),
        *engine_charts(stage),
    ]
    return charts


def engine_charts(stage: Stage) -> list[Chart]:
    """How well the machine is used and how far an update moves the weights; of a mixture, how its experts are loaded."""
    steps, resources = stage.events.steps, stage.events.resources
    used = [(step, share * 100) for step, share in points(resources, "system/mfu")]
    moved = [
        (Text("attention", "注意力"), "main", "update_ratio/attention"),
        (Text("feed-forward", "前馈网络"), "eval", "update_ratio/mlp"),
    ]
    loads = [(Text("busiest", "最忙"), "bad", "router/max_load"), (Text("idlest", "最闲"), "good", "router/min_load")]

    def several(curves: list[tuple[Text, str, str]]) -> tuple[dict[str, object], ...]:
        return tuple(one for name, role, key in curves for one in trace(points(steps, key), role, name))

    return [
        *optional(
            Chart(
                "mfu",
                Text("Share of the measured matrix-product peak (MFU)", "占实测矩阵乘峰值的比例（MFU）"),
                UNITS["%"],
                trace(used, "main", Text("", "")),
                from_zero=True,
            )
        ),
        *optional(
            Chart(
                "update",
                Text("Update ÷ weights (RMS)", "更新量 ÷ 权重（均方根）"),
                Text("log scale", "对数轴"),
                several(moved),
                log=True,
            )
        ),
        *optional(
            Chart(
                "experts", Text("Load of an expert", "专家负载"), Text("1 = even", "1 = 均衡"), several(loads), from_zero=True
            )
        ),
        *optional(
            Chart(
                "loss-scale",
                Text("Loss scale (fp16)", "损失缩放（fp16）"),
                Text("log scale", "对数轴"),
                single(steps, "train/loss_scale"),
                log=True,
            )
        ),
    ]


def optional(chart: Chart) -> list[Chart]:
    return [chart] if chart.traces else []


def trace(curve: Points, role: str, name: Text) -> tuple[dict[str, object], ...]:
    if not curve:
        return ()
    shown = thin(curve)
    return (
        {
            "x": [figure(step) for step, _ in shown],
            "y": [figure(value) for _, value in shown],
            "role": role,
            "name": name._asdict(),
        },
    )


def figure(value: float) -> float | int:
    """Six significant figures keep the page small and lose nothing a screen can show."""
    short = float(f"{value:.6g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def single(rows: Iterable[Mapping[str, object]], key: str) -> tuple[dict[str, object], ...]:
    return trace(points(rows, key), "main", Text("", ""))


def smoothed(curve: Points, role: str, name: Text) -> tuple[dict[str, object], ...]:
    """The raw curve, faint, below its moving average."""
    if len(curve) < 5:
        return trace(curve, role, name)
    span = smoothing_span(len(curve))
    raw = trace(curve, f"{role}-faint", Text(f"{name.en}, raw", f"{name.zh}，原始"))
    mean = Text(f"{name.en}, {span}-point average", f"{name.zh}，{span} 点平均")
    return raw + trace(smooth(curve), role, mean)


def loss_traces(stage: Stage) -> tuple[dict[str, object], ...]:
    return smoothed(points(stage.events.steps, "train/loss"), "main", Text("train", "训练")) + trace(
        with_start(stage, "loss"), "eval", Text("validation", "验证")
    )


def with_start(stage: Stage, name: str) -> Points:
    """Evaluation points, opened by the one taken before the first step."""
    curve = points(stage.events.evals, f"eval/{name}")
    start = preference_accuracy(stage, "before") if name == "rewards/accuracies" else metric(stage, name, "before")
    if start is not None and abs(start) < float("inf") and not any(step <= 0 for step, _ in curve):
        return [(0.0, start), *curve]
    return curve


def accuracy_chart(stage: Stage) -> Chart:
    curve = [(step, share * 100) for step, share in with_start(stage, "token_accuracy")]
    title = Text("Token accuracy", "词元准确率")
    return Chart("token-accuracy", title, UNITS["%"], trace(curve, "eval", Text("validation", "验证")), from_zero=True)


def prompts_chart(stage: Stage) -> Chart:
    """How many regression prompts pass, and how much their answers repeat themselves."""
    curves = [
        (Text("passed", "通过"), "good", "prompt_tests/pass_rate"),
        (Text("repetition", "重复"), "bad", "prompt_tests/repetition"),
    ]
    traces = tuple(
        one
        for name, role, key in curves
        for one in trace([(step, share * 100) for step, share in points(stage.events.regressions, key)], role, name)
    )
    return Chart("prompts", Text("Regression prompts", "回归提示"), UNITS["%"], traces, from_zero=True)


def gradient_traces(stage: Stage) -> tuple[dict[str, object], ...]:
    """A log axis has no place for zero, so such points are left out."""
    curve = [(step, norm) for step, norm in points(stage.events.steps, "train/grad_norm") if norm > 0]
    return smoothed(curve, "main", Text("norm", "范数"))


def memory_chart(stage: Stage) -> Chart:
    curve = points(stage.events.resources, "system/memory_bytes")
    scale, unit = (2**30, "GiB") if max((size for _, size in curve), default=0.0) >= 2**30 else (2**20, "MiB")
    scaled = [(step, size / scale) for step, size in curve]
    return Chart("memory", Text("Memory", "内存"), Text(unit, unit), trace(scaled, "main", Text("", "")), from_zero=True)


def preference_charts(stage: Stage) -> list[Chart]:
    """How pairs of answers are told apart, where a stage recorded that."""
    chosen, rejected = Text("chosen", "被选"), Text("rejected", "被拒")
    train, validation = Text("train", "训练"), Text("validation", "验证")

    def both(group: str) -> tuple[dict[str, object], ...]:
        return smoothed(points(stage.events.steps, f"train/{group}/chosen"), "good", chosen) + smoothed(
            points(stage.events.steps, f"train/{group}/rejected"), "bad", rejected
        )

    def measured(name: str, scale: float) -> tuple[dict[str, object], ...]:
        training = [(step, value * scale) for step, value in points(stage.events.steps, f"train/{name}")]
        held_out = [(step, value * scale) for step, value in with_start(stage, name)]
        return smoothed(training, "main", train) + trace(held_out, "eval", validation)

    accuracy = Text("Preference accuracy", "偏好准确率")
    charts = [
        Chart("rewards", Text("Rewards", "奖励"), UNITS["nats"], both("rewards")),
        Chart("margins", Text("Reward margin", "奖励差"), UNITS["nats"], measured("rewards/margins", 1)),
        Chart("accuracy", accuracy, UNITS["%"], measured("rewards/accuracies", 100), from_zero=True),
        Chart("logps", Text("Log-probability", "对数概率"), UNITS["nats"], both("logps")),
    ]
    return [chart for chart in charts if chart.traces]

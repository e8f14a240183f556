"""The figures of one stage."""

from fledge.report.figures import Chart, Series, curve, if_recorded, noisy, percent, recorded, training, validation
from fledge.report.i18n import UNITS, Text, unit_text
from fledge.report.loss_charts import loss_charts
from fledge.report.method_charts import policy_charts, preference_charts
from fledge.report.read_run import mapping
from fledge.report.records import Stage
from fledge.report.series import points
from fledge.report.stage_values import with_first_evaluation

PHASES = {
    "data": Text("data", "数据"),
    "generate": Text("generation", "生成"),
    "forward": Text("forward", "前向"),
    "backward": Text("backward", "反向"),
    "optimizer": Text("optimizer", "优化器"),
    "evaluate": Text("evaluation", "评估"),
    "save": Text("saving", "保存"),
}
"""Names of the parts of a step whose time is recorded; others keep their own name."""


def stage_charts(stage: Stage) -> list[Chart]:
    """All figures of a stage, in the order of the page."""
    steps, resources = stage.events.steps, stage.events.resources
    return [
        Chart(name="loss", title=Text("Loss", "损失"), unit=unit_text(stage.loss_unit), series=loss_series(stage), wide=True),
        *preference_charts(stage),
        *policy_charts(stage),
        *if_recorded(accuracy_chart(stage), bits_chart(stage), prompts_chart(stage)),
        *loss_charts(stage),
        Chart(
            name="learning-rate",
            title=Text("Learning rate", "学习率"),
            unit=Text("per step", "每步"),
            series=recorded(steps, "train/lr"),
            from_zero=True,
        ),
        Chart(
            name="gradient-norm",
            title=Text("Gradient norm", "梯度范数"),
            unit=UNITS[""],
            series=gradient_series(stage),
            log=True,
        ),
        Chart(
            name="speed",
            title=Text("Speed", "速度"),
            unit=UNITS["tokens/s"],
            series=recorded(resources, "system/tokens_per_second"),
            from_zero=True,
        ),
        memory_chart(stage),
        *engine_charts(stage),
    ]


def engine_charts(stage: Stage) -> list[Chart]:
    """Figures of machine utilisation, the time of a step, update size, gradient noise, expert load and fp16 loss scale, as far
    as they were recorded."""
    steps, resources = stage.events.steps, stage.events.resources
    return if_recorded(
        Chart(
            name="mfu",
            title=Text("Share of the measured matrix-product peak (MFU)", "占实测矩阵乘峰值的比例（MFU）"),
            unit=UNITS["%"],
            series=curve(percent(points(resources, "system/mfu"))),
            from_zero=True,
        ),
        phases_chart(stage),
        update_ratio_chart(stage),
        Chart(
            name="noise-scale",
            title=Text("Gradient noise scale", "梯度噪声尺度"),
            unit=UNITS["rows"],
            series=noisy([(step, rows) for step, rows in points(steps, "grad_noise/scale") if rows > 0]),
            log=True,
        ),
        expert_load_chart(stage),
        Chart(
            name="loss-scale",
            title=Text("Loss scale (fp16)", "损失缩放（fp16）"),
            unit=UNITS[""],
            series=recorded(steps, "train/loss_scale"),
            log=True,
        ),
    )


def phases_chart(stage: Stage) -> Chart:
    """The time of each part of a step, in milliseconds."""
    rows = [{"step": row.get("step"), **mapping(row.get("system/phases"))} for row in stage.events.resources]
    names = list(dict.fromkeys(name for row in rows for name in row if name != "step"))
    series = tuple(
        one
        for number, name in enumerate(names)
        for one in noisy(
            [(step, seconds * 1000) for step, seconds in points(rows, name)],
            f"c{number % 8}",
            PHASES.get(name, Text(name, name)),
        )
    )
    unit = Text("ms", "毫秒")
    kept = tuple(one for one in series if any(value > 0 for _, value in one.points))
    return Chart(name="phases", title=Text("Time of a step", "每步用时"), unit=unit, series=kept, log=True)


def update_ratio_chart(stage: Stage) -> Chart:
    """The size of an update relative to the weights (root mean square), for attention and feed-forward weights."""
    steps = stage.events.steps
    attention = curve(points(steps, "update_ratio/attention"), "main", Text("attention", "注意力"))
    feed_forward = curve(points(steps, "update_ratio/mlp"), "eval", Text("feed-forward", "前馈网络"))
    return Chart(
        name="update",
        title=Text("Update ÷ weights (RMS)", "更新量 ÷ 权重（均方根）"),
        unit=UNITS[""],
        series=attention + feed_forward,
        log=True,
    )


def expert_load_chart(stage: Stage) -> Chart:
    """The load of the busiest and of the idlest expert of a mixture, relative to an even load."""
    steps = stage.events.steps
    busiest = curve(points(steps, "router/max_load"), "bad", Text("busiest", "最忙"))
    idlest = curve(points(steps, "router/min_load"), "good", Text("idlest", "最闲"))
    return Chart(
        name="experts",
        title=Text("Load of an expert", "专家负载"),
        unit=Text("1 = even", "1 = 均衡"),
        series=busiest + idlest,
        from_zero=True,
    )


def loss_series(stage: Stage) -> tuple[Series, ...]:
    """The training loss, and the validation loss where it is the same measure."""
    train = training(points(stage.events.steps, "train/loss"))
    return train if points(stage.events.steps, "train/reward") else train + validation(with_first_evaluation(stage, "loss"))


def accuracy_chart(stage: Stage) -> Chart:
    """The validation token accuracy in percent."""
    return Chart(
        name="token-accuracy",
        title=Text("Token accuracy", "词元准确率"),
        unit=UNITS["%"],
        series=validation(percent(with_first_evaluation(stage, "token_accuracy"))),
        from_zero=True,
    )


def bits_chart(stage: Stage) -> Chart:
    """The validation loss in bits per byte of text, which models with different tokenizers can be compared by."""
    return Chart(
        name="bits-per-byte",
        title=Text("Bits per byte", "每字节比特数"),
        unit=UNITS["bits"],
        series=validation(with_first_evaluation(stage, "bits_per_byte")),
    )


def prompts_chart(stage: Stage) -> Chart:
    """The share of prompt tests that pass, and the repetition of their answers, in percent."""
    rows = stage.events.prompt_tests
    passed = curve(percent(points(rows, "prompt_tests/pass_rate")), "good", Text("passed", "通过"), markers=True)
    repetition = curve(percent(points(rows, "prompt_tests/repetition")), "bad", Text("repetition", "重复"), markers=True)
    title = Text("Prompt tests", "提示测试")
    return Chart(name="prompts", title=title, unit=UNITS["%"], series=passed + repetition, from_zero=True)


def gradient_series(stage: Stage) -> tuple[Series, ...]:
    """The gradient norm. A log axis cannot show zero, so such points are left out."""
    norms = [(step, norm) for step, norm in points(stage.events.steps, "train/grad_norm") if norm > 0]
    return noisy(norms, "main", Text("norm", "范数"))


def memory_chart(stage: Stage) -> Chart:
    """The memory in use, in MiB or GiB."""
    sizes = points(stage.events.resources, "system/memory_bytes")
    scale, unit = (2**30, "GiB") if max((size for _, size in sizes), default=0.0) >= 2**30 else (2**20, "MiB")
    return Chart(
        name="memory",
        title=Text("Memory", "内存"),
        unit=Text(unit, unit),
        series=curve([(step, size / scale) for step, size in sizes]),
        from_zero=True,
    )

"""Checks of what a stage optimizes: preferences, rewards and adapters."""

from collections.abc import Iterator

from fledge.findings import Finding
from fledge.plan.critic.planned_stage import PlannedStage
from fledge.recipe.sections.adapter import PREFIX
from fledge.recipe.sections.policy import PolicySettings

BETAS = {  # by kind of stage and loss: what beta multiplies, the smallest and the largest that is not told, the default
    # sums over an answer's tokens: 0.01 (alignment-handbook's zephyr-7b-dpo-qlora) to 0.5 (Rafailov et al. 2023) are published
    ("preference", "sigmoid"): ("sums", 0.001, 1.0, 0.1),
    ("preference", "robust"): ("sums", 0.001, 1.0, 0.1),
    ("preference", "hinge"): ("sums", 0.001, 1.0, 0.1),
    ("kto", ""): ("sums", 0.001, 1.0, 0.1),
    # means over them: 0.5 (MiniMind), 2 to 10 (SimPO: Meng et al. 2024 and its repository), 5 (Lambert et al. 2024)
    ("preference", "sigmoid_norm"): ("means", 0.3, 50.0, 2.0),
    ("preference", "simpo"): ("means", 0.3, 50.0, 2.0),
}
READ = {  # what that is in words, and what a beta of another size is for
    "sums": ("sums of log-probabilities", "it has the size of one for means"),
    "means": ("means of log-probabilities", "it has the size of one for sums"),
}
LEAST_TEMPERATURE = 0.3  # below, most answers of a group are equal


def answers_from_fresh_weights(planned: PlannedStage) -> Iterator[Finding]:
    """A stage that needs answers, from a model that has learned nothing."""
    judges = planned.compares_answers or planned.train.examples.labels is not None
    draws = planned.stage.answers_per_example > 1
    if planned.starts_fresh and (judges or draws):
        millions = f"{planned.plan.parameters / 1e6:.1f}"
        message = f"the stage prefers answers with {millions}M random weights, which cannot answer yet"
        if draws:
            message = f"the stage draws answers from {millions}M random weights, which cannot answer yet"
        yield planned.finding(
            "init_from",
            message,
            "set init_from or model.path to a model that was fine-tuned, or put an sft stage before it",
            sure="certain",
            evidence={"parameters": planned.plan.parameters},
            patch=None,  # which model is there is not known
        )


def beta_of_another_loss(planned: PlannedStage) -> Iterator[Finding]:
    """A beta for sums of log-probabilities where the loss takes means, or the reverse: they differ by the length of answers."""
    stage = planned.stage
    loss = getattr(stage, "loss_type", "")
    known, beta = BETAS.get((stage.kind, loss)), getattr(stage, "beta", None)
    if known is None or beta is None:
        return
    of, low, high, usual = known
    if low <= beta <= high:
        return
    mean = None if planned.report is None else float(planned.train.examples.target_tokens.mean())
    is_swapped = (beta > high) == (of == "sums")  # such as 2 for sums, 0.1 for means
    reads, other = READ[of]
    what = f"beta {beta:g} multiplies {reads}"
    if mean is not None:
        what = f"beta {beta:g} multiplies {reads} over answers of {mean:,.0f} tokens"
    why = other if is_swapped else "none of this size is published"
    yield planned.finding(
        "beta",
        f"{what}: {why}",
        f"set beta to {usual:g}, or leave it out",
        sure="likely" if is_swapped else "possible",
        evidence={"beta": beta, "low": low, "high": high, "answer_tokens": mean},
        patch=planned.patch(beta=usual),
    )


def equal_answers_in_groups(planned: PlannedStage) -> Iterator[Finding]:
    """Answers to a prompt that are drawn alike: a group without differences teaches nothing."""
    stage = planned.stage
    if not isinstance(stage, PolicySettings):
        return
    rollout = stage.rollout
    if rollout.top_k == 1:
        yield planned.finding(
            "rollout.top_k",
            f"top_k 1 draws {rollout.num_generations} times the same answer to a prompt: no advantage is other than 0",
            "leave rollout.top_k out",
            sure="certain",
            evidence={"top_k": 1, "num_generations": rollout.num_generations},
            patch=planned.patch(rollout__top_k=0),
        )
    elif rollout.temperature < LEAST_TEMPERATURE:
        yield planned.finding(
            "rollout.temperature",
            f"temperature {rollout.temperature:g} draws nearly equal answers to a prompt: few groups have differences to learn "
            "from",
            "set rollout.temperature to 1",
            sure="possible",
            evidence={"temperature": rollout.temperature, "num_generations": rollout.num_generations},
            patch=planned.patch(rollout__temperature=1.0),
        )


def rank_above_width(planned: PlannedStage) -> Iterator[Finding]:
    """An adapter with more numbers than the matrices that it adapts."""
    adapter = planned.stage.adapter
    if adapter is None or adapter.peft_type == PREFIX or 2 * adapter.r <= planned.width:
        return
    less = max(1, planned.width // 16)
    equal = [name for name, stage in planned.recipe.stages.items() if stage.adapter == planned.written.adapter]  # it may go on
    yield planned.finding(
        "adapter.r",
        f"an adapter of rank {adapter.r:,} has more numbers than a matrix of width {planned.width:,}: training the weights "
        "takes less memory",
        f"set adapter.r to {less:,}, or leave the adapter out",
        sure="certain",
        evidence={"r": adapter.r, "width": planned.width},
        patch={f"stages.{name}.adapter.r": less for name in equal},
    )

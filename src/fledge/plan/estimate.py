"""What a stage will take, about: seconds of training, from its work and the speed of matrix products."""

from fledge.model.cost import ModelCost
from fledge.recipe.schema import Stage

MFU = 0.4  # share of the fastest matrix product that training reaches: measured 0.3 to 0.5 on models of 2M to 100M parameters
OVERHEAD = 1.1  # evaluations and checkpoints


def training_seconds(stage: Stage, cost: ModelCost, context: int, tokens: float, flops: float) -> float:
    """Seconds of training on `tokens` positions of documents of up to `context` tokens, where the fastest matrix product has
    `flops` FLOP/s. Frozen weights get no gradient, a reference model that is kept reads each token once more; answers that a
    stage draws itself, compiling and the start are not counted."""
    work = cost.training_flops(context)
    if stage.adapter is not None:  # of three products per weight, that of its gradient is left out
        work *= 2 / 3
    if stage.keeps_reference_model:
        work += cost.forward_flops(context)
    return seconds_of(work * tokens, flops)


def seconds_of(work: float, flops: float) -> float:
    """Seconds of training that takes `work` FLOPs, where the fastest matrix product has `flops` FLOP/s."""
    return OVERHEAD * work / (MFU * flops)


def minutes_text(seconds: float) -> str:
    """`about 6 minutes`."""
    if seconds >= 5400:
        return f"about {seconds / 3600:.1f} hours"
    return f"about {seconds / 60:.0f} minutes" if seconds >= 90 else f"about {max(1, round(seconds))} seconds"

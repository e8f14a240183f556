"""Whether an update can make the chosen answers of pairs likelier and the rejected ones less likely at the same time.

Let g_c and g_r be the gradients of the summed log-probabilities of the chosen and of the rejected answers, and d_c, d_r the
weights that the loss gives them: where these are equal in all pairs, its gradient is −d_c·g_c + d_r·g_r. A small step against
it moves the chosen answers by d_c·|g_c|² − d_r·⟨g_c, g_r⟩ and the rejected ones by d_c·⟨g_c, g_r⟩ − d_r·|g_r|² (Yuan et al.
2024, arXiv 2410.13828). Where the inner product is positive, the first grows and the second falls as long as the ratio
d_c / d_r is in the band from ⟨g_c, g_r⟩ / |g_c|² to |g_r|² / ⟨g_c, g_r⟩, the disentanglement band (Chen et al. 2026, arXiv
2604.18239). Below it both fall: likelihood displacement. It describes a step of plain gradient descent; optimizers scale each
weight.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from fledge.data import Batch
from fledge.model.protocol import LanguageModel, eval_mode
from fledge.objective.base import Objective
from fledge.objective.preference import DPOObjective
from fledge.recipe.schema import StageBase


@torch.enable_grad()
def disentanglement(objective: DPOObjective, model: LanguageModel, batch: Batch) -> dict[str, float]:
    """The ratio of the weights that the loss gives chosen and rejected answers, the band that it has to be in, and the cosine
    of the two gradients, for the pairs of a batch; without dropout. Two more gradients of all trained parameters are in memory.

    The band is left out where the inner product is not positive: then every ratio is in it."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with eval_mode(model):
        output, logps = objective.with_logps(model, batch)
        weights = torch.autograd.grad(output.loss, logps.policy, retain_graph=True)[0].double()
        chosen = torch.autograd.grad(logps.policy[:, 0].sum(), trained, retain_graph=True, allow_unused=True)
        rejected = torch.autograd.grad(logps.policy[:, 1].sum(), trained, allow_unused=True)
    squares, inner = (_dot(chosen, chosen), _dot(rejected, rejected)), _dot(chosen, rejected)
    pushed_up, pushed_down = -float(weights[:, 0].sum()), float(weights[:, 1].sum())
    figures = {
        "disentanglement/ratio": pushed_up / pushed_down if pushed_down else math.nan,
        "disentanglement/cosine": inner / math.sqrt(squares[0] * squares[1]) if min(squares) > 0 else math.nan,
    }
    if inner > 0:
        figures |= {"disentanglement/band_low": inner / squares[0], "disentanglement/band_high": squares[1] / inner}
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def disentanglement_probe(stage: StageBase, objective: Objective) -> Callable[[LanguageModel, Batch], dict[str, float]] | None:
    """A function that measures it for a model and a batch; None in a stage that does not ask for it."""
    if not stage.measures_disentanglement or not isinstance(objective, DPOObjective):
        return None
    return partial(disentanglement, objective)


def _dot(left: Sequence[Tensor | None], right: Sequence[Tensor | None]) -> float:
    """The inner product of two gradients, summed in float64."""
    products = [(a * b).sum(dtype=torch.float64) for a, b in zip(left, right, strict=True) if a is not None and b is not None]
    return float(torch.stack(products).sum()) if products else 0.0

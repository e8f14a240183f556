"""The size of an update for each kind of parameter: RMS of the change ÷ RMS of the weights."""

from typing import Any

import torch
from torch import Tensor, nn

from fledge.distributed.context import DistributedContext
from fledge.distributed.fsdp import get_local_tensor, is_sharded

aten: Any = torch.ops.aten  # its `_foreach` operations: one launch for many tensors
GROUPS = ("embed", "attention", "mlp", "norm", "head")


def group_of(name: str) -> str:
    """The kind of a parameter by its name; `other` for a name that the decoder does not have."""
    groups = {"norm": "norm", "embed_tokens": "embed", "lm_head": "head", "self_attn": "attention", "mlp": "mlp"}
    return next((group for substring, group in groups.items() if substring in name), "other")


class UpdateRatioMonitor:
    """Compares the weights before and after one update: `before()`, the update, `after()`. Keeps a copy of the weights in
    between."""

    def __init__(self, model: nn.Module, ranks: DistributedContext | None = None) -> None:
        """`ranks`: the ranks that share a sharded model."""
        trained = [(group_of(name), p) for name, p in model.named_parameters() if p.requires_grad]
        self.ranks = ranks if ranks is not None and any(is_sharded(p) for _, p in trained) else None
        self.parameters = [(group, get_local_tensor(p.detach())) for group, p in trained]
        groups = [group for group, _ in trained]
        self.members = {  # on the device from the beginning: a copy in every update would wait for it
            group: torch.tensor([name == group for name in groups], device=self.parameters[0][1].device)
            for group in dict.fromkeys(groups)
        }
        self._copies: list[Tensor] = []

    @torch.no_grad()
    def before(self) -> None:
        """Copy the weights."""
        self._copies = [parameter.clone() for _, parameter in self.parameters]

    @torch.no_grad()
    def after(self) -> dict[str, Tensor]:
        """RMS(Δw) / RMS(w before) of each group that the model has, as float32 scalars on its device; 0 if all weights were 0.
        Frees the copy. Raises ValueError without an earlier `before`."""
        if not self._copies:
            raise ValueError("after() without before()")
        now = [parameter for _, parameter in self.parameters]
        weights = torch.stack(aten._foreach_norm.Scalar(self._copies, 2))
        aten._foreach_sub_.List(self._copies, now)
        changes = torch.stack(aten._foreach_norm.Scalar(self._copies, 2))
        self._copies = []
        if self.ranks is not None:
            squares = [weights.square_(), changes.square_()]
            self.ranks.all_reduce_(squares)
            weights, changes = (values.sqrt_() for values in squares)
        ratios = {}
        for group, members in self.members.items():
            change, weight = (torch.linalg.vector_norm(norms * members) for norms in (changes, weights))
            ratios[group] = torch.where(weight > 0, change / weight, 0.0)
        return ratios

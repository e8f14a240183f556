"""The optimizers of a model: AdamW, AdamW in 8 bits, or Muon for the matrices with AdamW for the rest."""

import torch
from torch import Tensor, nn

from fledge.errors import FledgeError
from fledge.model.protocol import LanguageModel
from fledge.optim.adamw_8bit import SMALLEST, AdamW8bit
from fledge.optim.muon import Muon
from fledge.recipe.schema import OptimizerConfig


def build_optimizers(model: LanguageModel, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """The optimizers of a model; every trained parameter belongs to exactly one. All read `found_inf` as torch's
    fused AdamW does.

    AdamW (Loshchilov & Hutter 2019): matrices decay; norms, biases and the embedding (a table of vectors, not a map) do
    not, unless `decay` is `everything`. Muon (Jordan et al. 2024) makes the momentum of each matrix inside the blocks
    orthogonal; its updates are scaled to the size of AdamW's (Liu et al. 2025, eq. 4), so both share one learning rate.
    Embedding, head and routers stay with AdamW. `adamw8bit` (Dettmers et al. 2022) is for the matrices inside the blocks:
    the embedding and the head, whose rows are seen seldom and unevenly, stay in float32 (ibid., §2.3), and so do tensors of
    fewer than 4,096 numbers. ValueError where the config still says `auto`.
    """
    lr, betas, decay = config.numbers()
    plain, tables, matrices = _param_groups(model)
    by_adam = [
        {"params": plain, "weight_decay": decay if config.weight_decay_on == "everything" else 0.0},
        {"params": tables, "weight_decay": decay},
    ]
    large = [p for p in matrices if config.name == "adamw8bit" and p.numel() >= SMALLEST]
    if config.name != "muon":
        kept = {id(p) for p in large}
        by_adam.append({"params": [p for p in matrices if id(p) not in kept], "weight_decay": decay})
    optimizers: list[torch.optim.Optimizer] = []
    if groups := [group for group in by_adam if group["params"]]:
        optimizers.append(torch.optim.AdamW(groups, lr=lr, betas=betas, eps=config.eps, fused=True))
    if large:
        optimizers.append(AdamW8bit([{"params": large, "weight_decay": decay}], lr=lr, betas=betas, eps=config.eps))
    if config.name == "muon" and matrices:
        optimizers.append(Muon(matrices, lr=lr, weight_decay=decay))
    return optimizers


def _param_groups(model: LanguageModel) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """What does not decay, the tables that do, and the matrices inside the blocks."""
    plain, tables, matrices = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        role = model.parameter_role(name)
        if role in ("vector", "embedding"):
            plain.append(parameter)
        elif role in ("head", "gate"):
            tables.append(parameter)
        else:
            matrices.append(parameter)
    return plain, tables, matrices


def optimizer_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Their state by parameter name: `<parameter>/<state>`."""
    return {
        f"{name}/{key}": torch.as_tensor(value)
        for name, parameter in model.named_parameters()
        for optimizer in optimizers
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizers(model: nn.Module, optimizers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """Put a saved state back; what had none has none. FledgeError for a state that belongs to no parameter."""
    saved: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        name, key = full.rsplit("/", 1)
        saved.setdefault(name, {})[key] = tensor
    owners = {parameter: o for o in optimizers for group in o.param_groups for parameter in group["params"]}
    for optimizer in optimizers:
        optimizer.state.clear()
    for name, parameter in model.named_parameters():
        if parameter in owners and name in saved:
            state = {key: tensor.to(parameter.device, copy=True) for key, tensor in saved.pop(name).items()}
            owners[parameter].state[parameter] = state
    if saved:
        names = ", ".join(sorted(saved)[:3])
        raise FledgeError(f"the saved optimizer state has {len(saved)} tensors' worth that this model does not train: {names}")

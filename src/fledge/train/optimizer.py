"""AdamW, or Muon for the matrices with AdamW for the rest; decay on matrices only."""

import torch
from torch import Tensor, nn

from fledge.recipe.schema import OptimizerConfig


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """The optimizers of a model; every parameter belongs to exactly one.

    AdamW (Loshchilov & Hutter 2019): matrices decay; norms, biases and the embedding (a table of vectors, not a map)
    do not. Muon (Jordan et al. 2024) orthogonalises the momentum of each matrix inside the blocks; its updates are
    scaled to the size of AdamW's (Liu et al. 2025, eq. 4), so both share one learning rate. The head is not a map
    between hidden states and stays with AdamW.
    """
    matrices, plain, tables = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or "embed_tokens" in name:
            plain.append(parameter)
        else:
            (tables if "lm_head" in name else matrices).append(parameter)
    decay = config.weight_decay
    by_adam = [{"params": plain, "weight_decay": 0.0}, {"params": tables, "weight_decay": decay}]
    if config.name == "adamw":
        by_adam.append({"params": matrices, "weight_decay": decay})
    groups = [group for group in by_adam if group["params"]]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
    ]
    if config.name == "muon":
        optimizers.append(torch.optim.Muon(matrices, lr=config.lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def optimizer_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Their state by parameter name: `<parameter>/<state>`."""
    return {
        f"{name}/{key}": torch.as_tensor(value)
        for name, parameter in model.named_parameters()
        for optimizer in optimizers
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizers(model: nn.Module, optimizers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """Put a saved state back."""
    saved: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        name, key = full.rsplit("/", 1)
        saved.setdefault(name, {})[key] = tensor
    owners = {parameter: o for o in optimizers for group in o.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        owners[parameter].state[parameter] = {
            key: tensor.to(parameter.device, copy=True) for key, tensor in saved[name].items()
        }

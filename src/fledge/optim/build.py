"""Construction of a model's optimizers: AdamW, 8-bit AdamW, Adafactor, or Muon for the matrices and AdamW for the rest."""

import torch
from torch import Tensor, nn

from fledge.errors import FledgeError
from fledge.model.protocol import LanguageModel
from fledge.optim.adafactor import Adafactor
from fledge.optim.adamw_8bit import MIN_NUMEL, AdamW8bit
from fledge.optim.muon import Muon
from fledge.recipe.schema import OptimizerConfig


def build_optimizers(model: LanguageModel, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """Build the optimizers of a model; every trained parameter belongs to exactly one optimizer.

    Each optimizer skips a step if its `found_inf` is 1, like torch's fused AdamW.

    - `adamw` (Loshchilov & Hutter 2019): weight decay applies to matrices. Norms, biases and the embedding (a table of vectors,
      not a map) do not decay, unless `weight_decay_on` is `everything`.
    - `muon` (Jordan et al. 2024): the momentum of each matrix inside the blocks is orthogonalized. Updates are scaled to the
      size of AdamW's (Liu et al. 2025, eq. 4), so both optimizers share one learning rate. The embedding, the head, the
      routers and adapters are trained by AdamW.
    - `adamw8bit` (Dettmers et al. 2022): 8-bit states for the matrices inside the blocks. The embedding and the head, whose
      rows get rare and uneven gradients, keep float32 states (ibid., §2.3), and so do tensors of fewer than 4,096 numbers.
    - `adafactor` (Shazeer & Stern 2018) for all parameters: it has no momentum, and its learning rate is relative to the size
      of the weights.

    Raises ValueError if a setting of `config` is still `auto`.
    """
    lr, betas, decay = config.numbers()
    no_decay, tables, matrices = _param_groups(model)
    adamw_groups = [
        {"params": no_decay, "weight_decay": decay if config.weight_decay_on == "everything" else 0.0},
        {"params": tables, "weight_decay": decay},
    ]
    if config.name == "adafactor":
        groups = [*adamw_groups, {"params": matrices, "weight_decay": decay}]
        return [Adafactor([group for group in groups if group["params"]], lr=lr)]
    eight_bit = [p for p in matrices if config.name == "adamw8bit" and p.numel() >= MIN_NUMEL]
    if config.name != "muon":
        eight_bit_ids = {id(p) for p in eight_bit}
        adamw_groups.append({"params": [p for p in matrices if id(p) not in eight_bit_ids], "weight_decay": decay})
    optimizers: list[torch.optim.Optimizer] = []
    if groups := [group for group in adamw_groups if group["params"]]:
        optimizers.append(torch.optim.AdamW(groups, lr=lr, betas=betas, eps=config.eps, fused=True))
    if eight_bit:
        optimizers.append(AdamW8bit([{"params": eight_bit, "weight_decay": decay}], lr=lr, betas=betas, eps=config.eps))
    if config.name == "muon" and matrices:
        optimizers.append(Muon(matrices, lr=lr, weight_decay=decay))
    return optimizers


def _param_groups(model: LanguageModel) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Trained parameters in three lists: without weight decay; tables and adapters with decay; matrices inside the
    blocks."""
    no_decay, tables, matrices = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        role = model.parameter_role(name)
        if role in ("vector", "embedding"):
            no_decay.append(parameter)
        elif role in ("head", "gate", "adapter"):
            tables.append(parameter)
        else:
            matrices.append(parameter)
    return no_decay, tables, matrices


def optimizer_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The state tensors of all optimizers, named `<parameter>/<state key>`."""
    return {
        f"{name}/{key}": torch.as_tensor(value)
        for name, parameter in model.named_parameters()
        for optimizer in optimizers
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizers(model: nn.Module, optimizers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """Load state tensors named as by `optimizer_tensors`; parameters without a saved state start without one.

    Raises FledgeError if a tensor belongs to no parameter that these optimizers train.
    """
    saved: dict[str, dict[str, Tensor]] = {}
    for tensor_name, tensor in tensors.items():
        name, key = tensor_name.rsplit("/", 1)
        saved.setdefault(name, {})[key] = tensor
    owners = {
        parameter: optimizer for optimizer in optimizers for group in optimizer.param_groups for parameter in group["params"]
    }
    for optimizer in optimizers:
        optimizer.state.clear()
    for name, parameter in model.named_parameters():
        if parameter in owners and name in saved:
            state = {key: tensor.to(parameter.device, copy=True) for key, tensor in saved.pop(name).items()}
            owners[parameter].state[parameter] = state
    if saved:
        names = ", ".join(sorted(saved)[:3])
        raise FledgeError(f"the saved optimizer state holds {len(saved)} parameters that this model does not train: {names}")

"""AdamW whose state takes 2 bytes a parameter instead of 8 (Dettmers et al. 2022).

Both moments are kept as one byte a number, an index into a table of 256 values between the block's largest and zero; a
block of 256 numbers shares one float32 scale: 2·(1 + 4/256) = 2.03 bytes a parameter.
"""

import functools
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fledge.optim.skip_step import SkipStepOptimizer, masked_copy_

BLOCK = 256
SMALLEST = 4096  # tensors with fewer numbers are left to float32 (chosen here)
SPAN = {"cpu": 2**10, "cuda": 2**15}  # blocks worked on at once: few on a CPU, to stay in its cache
UPPER = 18  # bits of a float32 that decide its code


@functools.cache
def dynamic_code(signed: bool, device: torch.device) -> Tensor:
    """The 256 values, ascending, of the dynamic tree code (Dettmers et al. 2022): decade 10⁻ᵉ, e = 0 … 6, has
    2^(6−e) values a sign, or 2^(7−e) without a sign, the midpoints of equal parts of [0.1, 1]·10⁻ᵉ; and 0 and 1."""
    values = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (6 - decade + (not signed)) + 1, dtype=torch.float64)
        middles = ((edges[1:] + edges[:-1]) / 2 * 10.0**-decade).tolist()
        values += middles + [-value for value in middles if signed]
    return torch.tensor(sorted(values), dtype=torch.float32, device=device)


@functools.cache
def _nearest(signed: bool, device: torch.device) -> Tensor:
    """The index of the nearest value of the code, uint8 [2¹⁸], by the upper bits of a float32 (sign, exponent and nine of
    the fraction): a search in the code itself takes thirty times as long on a CPU.

    Without a sign nothing above 10⁻⁴⁰ becomes 0: a second moment of 0 beside a first moment that is not would make an
    update without bound."""
    code = dynamic_code(signed, torch.device("cpu"))
    borders = (code[1:] + code[:-1]) / 2
    if not signed:
        borders[0] = 0
    rest = 32 - UPPER
    bits = (torch.arange(2**UPPER) << rest) + 2 ** (rest - 1)
    bits[0] = 0
    middles = torch.where(bits < 2**31, bits, bits - 2**32).int().view(torch.float32)
    return torch.bucketize(middles.nan_to_num(), borders).to(torch.uint8).to(device)


def quantise(values: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Codes uint8 [K, 256] and scales float32 [K] of values [K, 256]."""
    scales = values.abs().amax(dim=1)
    parts = values / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    upper = parts.view(torch.int32).bitwise_right_shift_(32 - UPPER).bitwise_and_(2**UPPER - 1)
    return _nearest(signed, values.device).index_select(0, upper.view(-1)).view_as(parts), scales


def dequantise(codes: Tensor, scales: Tensor, signed: bool) -> Tensor:
    """The values [K, 256] that codes and scales stand for."""
    values = dynamic_code(signed, codes.device).index_select(0, codes.flatten().int())
    return values.view_as(codes).mul_(scales[:, None])


class AdamW8bit(SkipStepOptimizer):
    """AdamW (Loshchilov & Hutter 2019) with both moments in blocks of 8 bits. Decay is decoupled; the update uses the
    moments before they are rounded."""

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def update_group(self, group: dict[str, Any]) -> None:
        """Parameter after parameter."""
        for parameter in group["params"]:
            if parameter.grad is not None:
                self._update(parameter, parameter.grad, group)

    def _begin(self, parameter: Tensor) -> dict[str, Tensor]:
        blocks, device = -(-parameter.numel() // BLOCK), parameter.device
        zero = int(dynamic_code(True, device).eq(0).nonzero())
        return {
            "step": torch.zeros((), device=device),
            "first_codes": torch.full((blocks, BLOCK), zero, dtype=torch.uint8, device=device),
            "first_scales": torch.zeros(blocks, device=device),
            "second_codes": torch.zeros(blocks, BLOCK, dtype=torch.uint8, device=device),
            "second_scales": torch.zeros(blocks, device=device),
        }

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        """A parameter, some blocks at a time."""
        state = self.state[parameter]
        if not state:
            state.update(self._begin(parameter))
        skip = self.skipped_on(parameter.device)
        step = state["step"] + 1
        corrections = tuple(1 - beta**step for beta in group["betas"])
        flat, slopes = parameter.view(-1), grad.reshape(-1)
        size = SPAN[parameter.device.type]
        for start in range(0, len(state["first_scales"]), size):
            span, part = slice(start, start + size), slice(start * BLOCK, (start + size) * BLOCK)
            blocks = {key: value[span] for key, value in state.items() if key != "step"}
            masked_copy_(flat[part], self._moved(flat[part], slopes[part], blocks, corrections, group, skip), skip)
        masked_copy_(state["step"], step, skip)

    def _moved(
        self,
        values: Tensor,
        grad: Tensor,
        blocks: dict[str, Tensor],
        corrections: tuple[Tensor, ...],
        group: dict[str, Any],
        skip: Tensor | None,
    ) -> Tensor:
        """The parameters [n] after the step; their moments, `blocks` of 256, are changed in place."""
        count, (beta1, beta2) = grad.numel(), group["betas"]
        grad = F.pad(grad, (0, -count % BLOCK)).view(-1, BLOCK)
        first = dequantise(blocks["first_codes"], blocks["first_scales"], True).lerp_(grad, 1 - beta1)
        second = dequantise(blocks["second_codes"], blocks["second_scales"], False)
        second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        for name, moment in (("first", first), ("second", second)):
            codes, scales = quantise(moment, name == "first")
            if name == "first":
                codes = _towards_zero(codes, scales, first, grad == 0)
            masked_copy_(blocks[f"{name}_codes"], codes, skip)
            masked_copy_(blocks[f"{name}_scales"], scales, skip)
        update = (first / corrections[0]) / (second.div_(corrections[1]).sqrt_() + group["eps"])
        return (values * (1 - group["lr"] * group["weight_decay"])).sub_(update.view(-1)[:count], alpha=group["lr"])


def _towards_zero(codes: Tensor, scales: Tensor, values: Tensor, where: Tensor) -> Tensor:
    """The codes, one nearer to zero where rounding made a value larger. Without a gradient 0.9 of a small value would be
    rounded back to the whole of it, for ever, and move its weight for ever."""
    grown = where & (dequantise(codes, scales, True).abs() > values.abs())
    return codes - (grown * values.sign()).to(torch.int8).to(torch.uint8)

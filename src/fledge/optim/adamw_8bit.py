"""AdamW whose optimizer state takes 2 bytes per parameter instead of 8 (Dettmers et al. 2022).

Both moments are stored in blocks of 256 numbers. Each number is one byte, an index into a table of 256 values in [-1, 1] (or
[0, 1] for the second moment); each block has one float32 scale, its largest magnitude. Per parameter this is 2·(1 + 4/256) =
2.03 bytes.
"""

import functools
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fledge.optim.skip_step import SkipStepOptimizer, masked_copy_

BLOCK = 256
MIN_NUMEL = 4096  # smaller tensors keep a float32 state (limit chosen by fledge)
BLOCKS_AT_ONCE = {"cpu": 2**10, "cuda": 2**15}  # blocks updated together: few on a CPU, so that they stay in its cache
LOOKUP_BITS = 18  # upper bits of a float32 that index the lookup table


@functools.cache
def dynamic_code(signed: bool, device: torch.device) -> Tensor:
    """The 256 values of the dynamic tree code in ascending order, float32 [256] (Dettmers et al. 2022).

    Decade 10⁻ᵉ (e = 0 … 6) has 2^(6−e) values per sign, or 2^(7−e) if the code is unsigned: the midpoints of equal intervals of
    [0.1, 1]·10⁻ᵉ. The values 0 and 1 complete the code.
    """
    values = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (6 - decade + (not signed)) + 1, dtype=torch.float64)
        middles = ((edges[1:] + edges[:-1]) / 2 * 10.0**-decade).tolist()
        values += middles + [-value for value in middles if signed]
    return torch.tensor(sorted(values), dtype=torch.float32, device=device)


@functools.cache
def _nearest_code_table(signed: bool, device: torch.device) -> Tensor:
    """Lookup table, uint8 [2¹⁸]: the upper bits of a float32 (sign, exponent, nine bits of the fraction) -> index of the
    nearest value of the code. A binary search in the code takes thirty times as long on a CPU.

    In the unsigned code no value above 10⁻⁴⁰ is rounded to 0: a second moment of 0 together with a nonzero first moment would
    make an unbounded update.
    """
    code = dynamic_code(signed, torch.device("cpu"))
    borders = (code[1:] + code[:-1]) / 2
    if not signed:
        borders[0] = 0
    lower_bits = 32 - LOOKUP_BITS
    bits = (torch.arange(2**LOOKUP_BITS) << lower_bits) + 2 ** (lower_bits - 1)
    bits[0] = 0
    middles = torch.where(bits < 2**31, bits, bits - 2**32).int().view(torch.float32)
    return torch.bucketize(middles.nan_to_num(), borders).to(torch.uint8).to(device)


def quantize(values: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Quantize `values` [K, 256] to codes, uint8 [K, 256], and scales (largest magnitude per block), float32 [K]."""
    scales = values.abs().amax(dim=1)
    normalized = values / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    upper = normalized.view(torch.int32).bitwise_right_shift_(32 - LOOKUP_BITS).bitwise_and_(2**LOOKUP_BITS - 1)
    return _nearest_code_table(signed, values.device).index_select(0, upper.view(-1)).view_as(normalized), scales


def dequantize(codes: Tensor, scales: Tensor, signed: bool) -> Tensor:
    """The values [K, 256] that codes [K, 256] and scales [K] represent."""
    values = dynamic_code(signed, codes.device).index_select(0, codes.flatten().int())
    return values.view_as(codes).mul_(scales[:, None])


class AdamW8bit(SkipStepOptimizer):
    """AdamW (Loshchilov & Hutter 2019) with both moments stored in 8 bits.

    Weight decay is decoupled. The update uses the moments before they are quantized.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def update_group(self, group: dict[str, Any]) -> None:
        """Update the parameters of `group` one by one."""
        for parameter in group["params"]:
            if parameter.grad is not None:
                self._update(parameter, parameter.grad, group)

    def _init_state(self, parameter: Tensor) -> dict[str, Tensor]:
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
        """Update one parameter, some blocks at a time."""
        state = self.state[parameter]
        if not state:
            state.update(self._init_state(parameter))
        skip = self.skipped_on(parameter.device)
        step = state["step"] + 1
        corrections = tuple(1 - beta**step for beta in group["betas"])
        flat, flat_grad = parameter.view(-1), grad.reshape(-1)
        size = BLOCKS_AT_ONCE[parameter.device.type]
        for start in range(0, len(state["first_scales"]), size):
            block_slice, element_slice = slice(start, start + size), slice(start * BLOCK, (start + size) * BLOCK)
            blocks = {key: value[block_slice] for key, value in state.items() if key != "step"}
            values = flat[element_slice]
            updated = self._updated_values(
                values, flat_grad[element_slice], blocks=blocks, corrections=corrections, group=group, skip=skip
            )
            masked_copy_(values, updated, skip)
        masked_copy_(state["step"], step, skip)

    def _updated_values(
        self,
        values: Tensor,
        grad: Tensor,
        *,
        blocks: dict[str, Tensor],
        corrections: tuple[Tensor, ...],
        group: dict[str, Any],
        skip: Tensor | None,
    ) -> Tensor:
        """The parameters [n] after the step. The quantized moments in `blocks` are updated in place."""
        count, (beta1, beta2) = grad.numel(), group["betas"]
        grad = F.pad(grad, (0, -count % BLOCK)).view(-1, BLOCK)
        first = dequantize(blocks["first_codes"], blocks["first_scales"], True).lerp_(grad, 1 - beta1)
        second = dequantize(blocks["second_codes"], blocks["second_scales"], False)
        second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        for name, moment in (("first", first), ("second", second)):
            codes, scales = quantize(moment, name == "first")
            if name == "first":
                codes = _round_towards_zero(codes, scales, first, grad == 0)
            masked_copy_(blocks[f"{name}_codes"], codes, skip)
            masked_copy_(blocks[f"{name}_scales"], scales, skip)
        update = (first / corrections[0]) / (second.div_(corrections[1]).sqrt_() + group["eps"])
        return (values * (1 - group["lr"] * group["weight_decay"])).sub_(update.view(-1)[:count], alpha=group["lr"])


def _round_towards_zero(codes: Tensor, scales: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """`codes`, moved one step towards zero where `mask` is set and quantization increased the magnitude.

    Without a gradient, 0.9 of a small value would be rounded up to the value itself again, and its weight would move forever.
    """
    increased = mask & (dequantize(codes, scales, True).abs() > values.abs())
    return codes - (increased * values.sign()).to(torch.int8).to(torch.uint8)

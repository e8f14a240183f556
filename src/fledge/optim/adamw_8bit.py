"""AdamW whose optimizer state takes 2 bytes per parameter instead of 8 (Dettmers et al. 2022).

Both moments are stored in blocks of 256 numbers. Each number is one byte, an index into a table of 256 values in [-1, 1] (or
[0, 1] for the second moment); each block has one float32 scale, its largest magnitude. Per parameter this is 2·(1 + 4/256) =
2.03 bytes.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fledge.optim.skip_step import SkipStepOptimizer, masked_copy_

aten: Any = torch.ops.aten  # for `_foreach` operations: one launch for many tensors
BLOCK = 256
ZERO = 127  # the code of 0 among the signed values
BLOCK_STATE = ("first_codes", "first_scales", "second_codes", "second_scales")
MIN_NUMEL = 4096  # smaller tensors keep a float32 state (limit chosen by fledge)
BLOCKS_AT_ONCE = {"cpu": 2**10, "cuda": 2**15}  # blocks updated together: few on a CPU, so that they stay in its cache
JOINS_PARAMETERS = {"cpu": False, "cuda": True}  # a GPU would spend the step on launches for each parameter
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
        """Update the parameters of `group`, some blocks at a time. On a GPU blocks of several parameters are updated together;
        each block has the result that it has alone."""
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter].update(self._init_state(parameter))
        if not parameters:
            return
        device = parameters[0].device
        skip = self.skipped_on(device)
        old_steps = [self.state[parameter]["step"] for parameter in parameters]
        steps, joins = torch.stack(old_steps) + 1, JOINS_PARAMETERS[device.type]
        corrections: list[Sequence[Tensor] | Tensor] = [  # of each moment, one for each parameter
            1 - beta**steps if joins else [1 - beta**step for step in steps.unbind()] for beta in group["betas"]
        ]
        for pieces in _rounds(parameters, BLOCKS_AT_ONCE[device.type], joins):
            self._update(pieces, corrections, group, skip)
        kept = steps if skip is None else torch.where(skip, steps - 1, steps)
        aten._foreach_copy_.default(old_steps, list(kept.unbind()))

    def _init_state(self, parameter: Tensor) -> dict[str, Tensor]:
        blocks, device = -(-parameter.numel() // BLOCK), parameter.device
        return {
            "step": torch.zeros((), device=device),
            "first_codes": torch.full((blocks, BLOCK), ZERO, dtype=torch.uint8, device=device),
            "first_scales": torch.zeros(blocks, device=device),
            "second_codes": torch.zeros(blocks, BLOCK, dtype=torch.uint8, device=device),
            "second_scales": torch.zeros(blocks, device=device),
        }

    def _update(
        self, pieces: list["Piece"], corrections: list[Sequence[Tensor] | Tensor], group: dict[str, Any], skip: Tensor | None
    ) -> None:
        """Update some blocks of one parameter or of several."""
        values = [piece.parameter.view(-1)[piece.elements] for piece in pieces]
        grads = [get_grad(piece.parameter).reshape(-1)[piece.elements] for piece in pieces]
        states = [{key: self.state[piece.parameter][key][piece.blocks] for key in BLOCK_STATE} for piece in pieces]
        if len(pieces) == 1:
            factors = tuple(correction[pieces[0].number] for correction in corrections)
            updated = self._updated_values(values[0], grads[0], blocks=states[0], corrections=factors, group=group, skip=skip)
            masked_copy_(values[0], updated, skip)
            return
        counts = [len(state["first_scales"]) for state in states]
        joined = {key: torch.cat([state[key] for state in states]) for key in BLOCK_STATE}
        first = pieces[0].number  # the pieces of a round are of neighbouring parameters, one piece each
        factors = tuple(
            torch.cat([correction[first + n].expand(count, 1) for n, count in enumerate(counts)]) for correction in corrections
        )
        values_padded, grads_padded = (torch.cat([_whole_blocks(one) for one in tensors]) for tensors in (values, grads))
        updated = self._updated_values(values_padded, grads_padded, blocks=joined, corrections=factors, group=group, skip=skip)
        for key in BLOCK_STATE:
            aten._foreach_copy_.default([state[key] for state in states], list(joined[key].split(counts)))
        result = updated if skip is None else torch.where(skip, values_padded, updated)
        parts = result.split([count * BLOCK for count in counts])
        aten._foreach_copy_.default(values, [part[: value.numel()] for part, value in zip(parts, values, strict=True)])

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
        """The parameters [n] after the step. The quantized moments in `blocks` are updated in place. `corrections`: of each
        moment, a scalar or [K, 1]."""
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


@dataclass(frozen=True)
class Piece:
    """Some blocks of a parameter, which is number `number` of those with a gradient."""

    parameter: Tensor
    number: int
    blocks: slice

    @property
    def elements(self) -> slice:
        """The positions of the blocks in the flat parameter."""
        return slice(self.blocks.start * BLOCK, self.blocks.stop * BLOCK)


def _rounds(parameters: list[Tensor], size: int, joins: bool) -> Iterator[list[Piece]]:
    """Pieces that are updated together, of at most `size` blocks: of one parameter, or, if `joins`, of several."""
    room, pieces = size, list[Piece]()
    for number, parameter in enumerate(parameters):
        blocks = -(-parameter.numel() // BLOCK)
        start = 0
        while start < blocks:
            if pieces and (not joins or room == 0 or (start == 0 and blocks > room)):
                yield pieces
                room, pieces = size, []
            stop = min(blocks, start + room)
            pieces.append(Piece(parameter, number, slice(start, stop)))
            room -= stop - start
            start = stop
    if pieces:
        yield pieces


def get_grad(parameter: Tensor) -> Tensor:
    """The gradient of a parameter that has one."""
    assert parameter.grad is not None
    return parameter.grad


def _whole_blocks(values: Tensor) -> Tensor:
    """The values [n] with zeros up to a whole number of blocks."""
    return F.pad(values, (0, -values.numel() % BLOCK)) if values.numel() % BLOCK else values


def _round_towards_zero(codes: Tensor, scales: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """`codes`, moved one step towards zero where `mask` is set and quantization increased the magnitude.

    Without a gradient, 0.9 of a small value would be rounded up to the value itself again, and its weight would move forever.
    """
    increased = mask & (dequantize(codes, scales, True).abs() > values.abs())
    return codes - (increased * values.sign()).to(torch.int8).to(torch.uint8)

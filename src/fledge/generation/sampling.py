"""How the next token is chosen: shaping the logits, and draws that belong to a token and not to its batch.

A draw is a function of the seed, the prompt's number and the token's place in its answer. What else is in the batch, how
large the batch is and in which order answers end changes nothing in it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

CANDIDATES = 512  # likeliest tokens that nearly always hold the nucleus; finding them is some five times faster than sorting

# Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", figure 17: the mixing of SplitMix64.
_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLIERS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. Temperature 0 is greedy; `top_k` 0 and `top_p` 1 are off.

    `repetition_penalty` divides positive and multiplies negative logits of tokens already seen (Keskar et al. 2019).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 128
    seed: int = 0

    @property
    def needs_seen_tokens(self) -> bool:
        """Whether it matters which tokens were there before."""
        return self.repetition_penalty != 1.0


def process_logits(logits: Tensor, sampling: SamplingParams, seen: Tensor | None = None) -> Tensor:
    """Logits [B, V] after repetition penalty, temperature, top-k and top-p; what is ruled out is -inf.

    `seen` [B, V] marks tokens already there; it is needed only for a repetition penalty. Tokens with the logit of the
    last one that is kept are kept too.
    """
    if sampling.needs_seen_tokens and seen is not None:
        penalised = torch.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
        logits = torch.where(seen, penalised, logits)
    if sampling.temperature > 0:
        logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        lowest = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < lowest, float("-inf"))
    if sampling.top_p < 1.0:
        logits = logits.masked_fill(logits < _lowest_of_nucleus(logits, sampling.top_p), float("-inf"))
    return logits


def _lowest_of_nucleus(logits: Tensor, top_p: float) -> Tensor:
    """The logit [B, 1] of the last token that top-p keeps: the one with which the likeliest tokens reach its share
    (Holtzman et al. 2020, §3.1)."""
    total = logits.logsumexp(-1, keepdim=True)
    if logits.device.type == "cpu" and logits.shape[-1] > 2 * CANDIDATES:
        ordered = logits.topk(CANDIDATES, dim=-1).values
        if bool(((ordered - total).exp().sum(-1) > top_p + 1e-4).all()):
            return _where_reached(ordered, total, top_p)
    return _where_reached(logits.sort(dim=-1, descending=True).values, total, top_p)


def _where_reached(ordered: Tensor, total: Tensor, top_p: float) -> Tensor:
    """The last of the logits [B, C], the largest first, before which the share is under `top_p`; at least the first."""
    share = (ordered - total).exp()
    kept = (share.cumsum(-1) - share < top_p).sum(-1, keepdim=True).clamp(min=1)
    return ordered.gather(-1, kept - 1)


def _signed(value: int) -> int:
    """A 64-bit pattern as the int64 that PyTorch has for it."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def _mix(state: Tensor) -> Tensor:
    for shift, multiplier in _MULTIPLIERS:
        state = (state ^ ((state >> shift) & (2 ** (64 - shift) - 1))) * _signed(multiplier)  # a logical shift; wraps
    return state ^ ((state >> 31) & (2**33 - 1))


def uniform_draws(seed: int, prompts: Tensor, places: Tensor) -> Tensor:
    """Uniform numbers in [0, 1), float64 [B], for the tokens at `places` [B] of the answers to `prompts` [B].

    Each of the three numbers is added to the mixed state of those before it and mixed in (SplitMix64); the upper 32
    bits of the result are the number.
    """
    state = torch.full_like(prompts, _signed(seed))
    for number in (torch.zeros_like(prompts), prompts, places):
        state = _mix(state + (number + 1) * _signed(_GAMMA))
    return ((state >> 32) & (2**32 - 1)).double() / 2**32


def sample_next_token(logits: Tensor, sampling: SamplingParams, seen: Tensor | None, prompts: Tensor, places: Tensor) -> Tensor:
    """The next token [B] of each row of logits [B, V]: the likeliest, or the one whose stretch of the cumulated
    probabilities the row's draw falls into."""
    shaped = process_logits(logits, sampling, seen)
    if sampling.temperature <= 0:
        return shaped.argmax(-1)
    heights = shaped.softmax(-1).cumsum(-1, dtype=torch.float64)
    drawn = uniform_draws(sampling.seed, prompts, places)[:, None] * heights[:, -1:]
    return torch.searchsorted(heights, drawn, right=True)[:, 0]

"""Choosing the next token: processing the logits, and random draws that belong to a token and not to its batch.

A draw is a function of the seed, the number of the sample and the position of the token in the answer. Which other
requests are in the batch, how large the batch is and in which order answers finish does not change it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fledge.errors import FledgeError
from fledge.generation.json_schema import JsonSchema
from fledge.model.device_copy import to_device

NUCLEUS_CANDIDATES = 512  # likeliest tokens that nearly always contain the nucleus; five times faster than sorting all

# Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", figure 17: the mixing of SplitMix64.
_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLIERS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the tokens of one request are chosen. Temperature 0 is greedy; `top_k` 0 and `top_p` 1 are off.

    `repetition_penalty` divides positive and multiplies negative logits of tokens already present (Keskar et al. 2019).
    `json_schema`: the answer follows it; tokens that would break it have no probability. `logprobs` asks for the
    log-probability of every chosen token. Raises FledgeError for a value out of bounds; its
    `where` is the name of the parameter.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 128
    seed: int = 0
    logprobs: bool = False
    json_schema: JsonSchema | None = None

    def __post_init__(self) -> None:
        bounds = (
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0, and at most 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
        )
        for name, is_valid, expected in bounds:
            if not is_valid:
                raise FledgeError(f"must be {expected}, not {getattr(self, name)}", where=name)

    @property
    def needs_seen_tokens(self) -> bool:
        """Whether the choice depends on which tokens are already present."""
        return self.repetition_penalty != 1.0

    @property
    def distribution(self) -> tuple[float, int, float, float]:
        """The parameters that determine the distribution; requests with equal values are processed together."""
        return self.temperature, self.top_k, self.top_p, self.repetition_penalty


GREEDY = SamplingParams()


def process_logits(logits: Tensor, params: SamplingParams, seen: Tensor | None = None) -> Tensor:
    """Logits [B, V] after repetition penalty, temperature, top-k and top-p; excluded tokens are -inf.

    `seen` bool [B, V] marks the tokens of prompt and answer; only a repetition penalty needs it. Tokens whose logit equals the
    lowest kept logit are kept too.
    """
    if params.needs_seen_tokens:
        if seen is None:
            raise ValueError("a repetition penalty needs to know which tokens are present")
        penalised = torch.where(logits > 0, logits / params.repetition_penalty, logits * params.repetition_penalty)
        logits = torch.where(seen, penalised, logits)
    if params.temperature > 0:
        logits = logits / params.temperature
    if 0 < params.top_k < logits.shape[-1]:
        lowest = logits.topk(params.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < lowest, float("-inf"))
    if params.top_p < 1.0:
        logits = logits.masked_fill(logits < _nucleus_threshold(logits, params.top_p), float("-inf"))
    return logits


def _nucleus_threshold(logits: Tensor, top_p: float) -> Tensor:
    """The lowest logit [B, 1] of the nucleus: the fewest likeliest tokens whose probabilities add up to at least `top_p`
    (Holtzman et al. 2020, §3.1)."""
    log_total = logits.logsumexp(-1, keepdim=True)
    if logits.device.type == "cpu" and logits.shape[-1] > 2 * NUCLEUS_CANDIDATES:
        descending = logits.topk(NUCLEUS_CANDIDATES, dim=-1).values
        if bool(((descending - log_total).exp().sum(-1) > top_p + 1e-4).all()):
            return _last_of_nucleus(descending, log_total, top_p)
    return _last_of_nucleus(logits.sort(dim=-1, descending=True).values, log_total, top_p)


def _last_of_nucleus(descending: Tensor, log_total: Tensor, top_p: float) -> Tensor:
    """The last logit [B, 1] of `descending` [B, C] before which the probabilities add up to less than `top_p`; the first
    logit at least."""
    probabilities = (descending - log_total).exp()
    nucleus_size = (probabilities.cumsum(-1) - probabilities < top_p).sum(-1, keepdim=True).clamp(min=1)
    return descending.gather(-1, nucleus_size - 1)


def _as_int64(value: int) -> int:
    """The int64 with the lower 64 bits of `value`."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def _mix(state: Tensor) -> Tensor:
    for shift, multiplier in _MULTIPLIERS:
        state = (state ^ ((state >> shift) & (2 ** (64 - shift) - 1))) * _as_int64(multiplier)  # a logical shift; wraps
    return state ^ ((state >> 31) & (2**33 - 1))


def uniform_draws(
    seeds: Sequence[int], samples: Sequence[int], positions: Sequence[int], device: torch.device | str = "cpu"
) -> Tensor:
    """Uniform numbers in [0, 1), float64 [B]: one for each triple of a seed, a sample's number and a token's position.

    The state starts as the seed. The numbers 0, sample and position are each added to it and mixed in (SplitMix64); the
    upper 32 bits of the result are the draw.
    """
    numbers = to_device([[_as_int64(seed) for seed in seeds], list(samples), list(positions)], torch.device(device))
    state, samples_, positions_ = numbers
    for number in (torch.zeros_like(samples_), samples_, positions_):
        state = _mix(state + (number + 1) * _as_int64(_GAMMA))
    return ((state >> 32) & (2**32 - 1)).double() / 2**32


def sample_next_token(logits: Tensor, params: SamplingParams, seen: Tensor | None, draws: Tensor | None) -> Tensor:
    """The next token [B] of each row of logits [B, V]: the likeliest token at temperature 0, else the token whose interval of
    the cumulative distribution contains the row's draw [B]."""
    processed = process_logits(logits, params, seen)
    if params.temperature <= 0:
        return processed.argmax(-1)
    if draws is None:
        raise ValueError("a temperature above 0 needs a random draw for each row")
    cumulative = processed.softmax(-1).cumsum(-1, dtype=torch.float64)
    thresholds = draws[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, thresholds, right=True)[:, 0]


def sample_batch(logits: Tensor, params: Sequence[SamplingParams], seen: Tensor | None, draws: Tensor | None) -> Tensor:
    """The next token [B] of each row of logits [B, V], where each row has its own parameters.

    `seen` [B, V] is needed if any row has a repetition penalty, `draws` [B] if any row has a temperature above 0.
    """
    groups: dict[tuple[float, int, float, float], list[int]] = {}
    for row, row_params in enumerate(params):
        groups.setdefault(row_params.distribution, []).append(row)
    if len(groups) == 1:
        return sample_next_token(logits, params[0], seen, draws)
    tokens = torch.empty(len(params), dtype=torch.long, device=logits.device)
    for rows in groups.values():
        index = to_device(rows, logits.device)
        of_group = (None if each is None else each[index] for each in (seen, draws))
        tokens[index] = sample_next_token(logits[index], params[rows[0]], *of_group)
    return tokens


def token_log_probabilities(logits: Tensor, tokens: Tensor) -> Tensor:
    """log softmax(logits)[token], float32 [B], of one token [B] for each row of logits [B, V]."""
    return logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)

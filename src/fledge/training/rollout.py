"""Rollouts: answers that a model has drawn, their rewards, and the advantages that follow from these."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fledge.data import Batch, PackedDataset
from fledge.data.storage import Examples
from fledge.generation import Completion, FinishReason
from fledge.objective.policy import ADVANTAGES, OLD_LOGPS, SAMPLING_LOGPS
from fledge.tokenizer import Tokenizer

STD_EPSILON = 1e-4  # added to the standard deviation that advantages are divided by, as in TRL


@dataclass(frozen=True, kw_only=True)
class DrawnAnswer:
    """What a reward may look at: a prompt, an answer to it, and the reference answer of the prompt's row.

    `prompt_tokens` and `completion_tokens`: with all special tokens, the answer with the stop token that ended it. `where`: the
    prompt's row, for messages; "" if it is not known."""

    prompt: str
    completion: str
    answer: str
    prompt_tokens: Sequence[int]
    completion_tokens: Sequence[int]
    finish_reason: FinishReason
    where: str = ""

    @classmethod
    def of(cls, prompt: Sequence[int], completion: Completion, answer: str, tokenizer: Tokenizer) -> "DrawnAnswer":
        """The answer of a completion; `answer` is the text of the reference answer."""
        stop = [] if completion.stop_token is None else [completion.stop_token]
        return cls(
            prompt=tokenizer.decode(prompt, skip_special=True),
            completion=tokenizer.decode(completion.tokens, skip_special=True),
            answer=answer,
            prompt_tokens=prompt,
            completion_tokens=[*completion.tokens, *stop],
            finish_reason=completion.finish_reason,
        )


@dataclass(frozen=True)
class RewardTable:
    """Names and weights of R rewards, and a function from n answers to their values, float64 [n, R], which raises FledgeError
    where a reward has none. `models`: fingerprints of the weights of those that are reward models, by name."""

    names: tuple[str, ...]
    weights: tuple[float, ...]
    score: Callable[[Sequence[DrawnAnswer]], np.ndarray]
    models: Mapping[str, str] = field(default_factory=dict)

    def total(self, values: np.ndarray) -> np.ndarray:
        """Σ weight · reward [n] of values [n, R]."""
        return values @ np.asarray(self.weights)


def has_equal_rewards(rewards: np.ndarray) -> bool:
    """Whether all rewards [G] of a group are equal. Their standard deviation may differ from 0 by rounding."""
    return bool((rewards == rewards[0]).all())


def group_advantages(rewards: np.ndarray, scale: str) -> np.ndarray:
    """Advantages [P, G] of P groups of G answers with these rewards: (r − mean of the group) / (std + 1e-4) (Shao et al. 2024,
    §4.1.2), with the standard deviation (unbiased) of the `group`, of the whole `batch`, or without a divisor (`none`; Liu et
    al. 2025). 0 in a group whose rewards are all equal."""
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    centred[[has_equal_rewards(group) for group in rewards]] = 0.0
    if scale == "group":
        return centred / (rewards.std(axis=1, ddof=1, keepdims=True) + STD_EPSILON)
    return centred / (rewards.std(ddof=1) + STD_EPSILON) if scale == "batch" else centred


def length_correlation(rewards: np.ndarray, lengths: np.ndarray) -> float | None:
    """Pearson correlation of rewards [P, G] and lengths [P, G] inside groups: of both without their groups' means. None if one
    does not vary."""
    r, n = (values - values.mean(axis=1, keepdims=True) for values in (rewards, lengths))
    scale = float(np.sqrt((r**2).sum() * (n**2).sum()))
    return float((r * n).sum() / scale) if scale > 1e-12 else None


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """The S answers of a rollout, from which the batches of `num_steps` updates are made, beginning with `first_step`.

    `step`, `row`, `example` int64 [S]: the update that trains an answer, and its prompt's packed row in the stream and number
    in the data. `tokens` int32 [N], `offsets` int64 [S + 1]: prompts with their answers. `weights` float32 [N]: 1 for the
    tokens of answers that count. `advantages` float32 [S]. `old_logps`, `sampling_logps` float32 [n]: log-probabilities of the
    n tokens with weight, of the model before the first update and of the generator; None where they are not needed. `metrics`:
    of all answers, for the event of the first update. `seconds`: by phase.
    """

    first_step: int
    num_steps: int
    step: np.ndarray
    row: np.ndarray
    example: np.ndarray
    tokens: np.ndarray
    offsets: np.ndarray
    weights: np.ndarray
    advantages: np.ndarray
    old_logps: np.ndarray | None = None
    sampling_logps: np.ndarray | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    def covers(self, step: int) -> bool:
        """Whether it has the answers of an update."""
        return self.first_step <= step < self.first_step + self.num_steps

    def with_old_logps(self, logps: np.ndarray) -> "Rollout":
        """The rollout with the log-probabilities [n] before its first update."""
        return replace(self, old_logps=logps)

    @cached_property
    def target_offsets(self) -> np.ndarray:
        """Where the targets of each answer begin in `old_logps`, and their number: int64 [S + 1]."""
        before = np.concatenate(([0], np.cumsum(self.weights > 0))).astype(np.int64)
        return before[self.offsets]

    # -- batches ------------------------------------------------------------------------------------------------------

    def packed(self, sequences: np.ndarray, packed_length: int, pad: int) -> PackedDataset:
        """Some of the answers [n], packed into rows."""
        spans = [slice(int(self.offsets[one]), int(self.offsets[one + 1])) for one in sequences]
        lengths = [span.stop - span.start for span in spans]
        examples = Examples(
            tokens=np.concatenate([self.tokens[span] for span in spans]),
            weights=np.concatenate([self.weights[span] for span in spans]),
            offsets=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
            sequences_per_example=1,
        )
        return PackedDataset(examples, packed_length, pad, seed=0, split_documents=False)

    def batches(self, sequences: np.ndarray, shape: tuple[int, int], pad: int) -> list[tuple[Batch, np.ndarray]]:
        """Some of the answers [n] as batches of one `shape` (packed rows, positions), each with the numbers of its answers in
        their order."""
        if not len(sequences):
            return []
        rows, packed_length = shape
        packed = self.packed(sequences, packed_length, pad)
        batches = []
        for start in range(0, len(packed.layout), rows):
            stop = min(start + rows, len(packed.layout))
            batch = packed.assemble([*range(start, stop), *[None] * (start + rows - stop)])
            members = sequences[list(batch.examples)]
            values = self.token_values(batch, members)
            batches.append((replace(batch, examples=tuple(self.example[members].tolist()), token_values=values), members))
        return batches

    def token_values(self, batch: Batch, members: np.ndarray) -> dict[str, Tensor]:
        """The values of a batch's targets by name, [B, T] each; `members` [n]: its answers in their order."""
        advantages = torch.from_numpy(np.append(self.advantages[members], np.float32(0)))
        values = {ADVANTAGES: advantages[batch.sequence_ids]}
        ends = self.target_offsets
        for name, logps in ((OLD_LOGPS, self.old_logps), (SAMPLING_LOGPS, self.sampling_logps)):
            if logps is None:
                continue
            placed, own = torch.zeros(batch.loss_weights.numel()), [logps[ends[one] : ends[one + 1]] for one in members]
            if own:
                placed[batch.target_index] = torch.from_numpy(np.concatenate(own))
            values[name] = placed.view_as(batch.loss_weights)
        return values

    # -- for a checkpoint in the middle of a rollout --------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """What the rest of its updates need."""
        span = torch.tensor([self.first_step, self.num_steps])
        arrays = {name: torch.from_numpy(getattr(self, name)) for name in SAVED if getattr(self, name) is not None}
        return {"span": span, **arrays}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Rollout":
        """The rollout from the tensors of `tensors`."""
        first_step, num_steps = tensors["span"].tolist()
        arrays: dict[str, Any] = {name: tensors[name].numpy() for name in SAVED if name in tensors}
        return cls(first_step=first_step, num_steps=num_steps, **arrays)


SAVED = ("step", "row", "example", "tokens", "offsets", "weights", "advantages", "old_logps")

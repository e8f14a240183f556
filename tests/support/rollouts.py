"""Fixed rollouts of random tokens, packed and padded."""

import numpy as np
import torch
from torch import Tensor

from fledge.data import Batch
from fledge.training.rollout import Rollout
from tests.support.decoders import VOCAB

PROMPTS, ANSWERS = (3, 3, 7, 5, 5, 2), (6, 1, 9, 4, 8, 12)  # tokens of each


def fixed_rollout(off_policy: bool = False) -> Rollout:
    """Six answers with different advantages; `off_policy`: their old log-probabilities are those of no model here."""
    generator = torch.Generator().manual_seed(3)
    lengths = [a + b for a, b in zip(PROMPTS, ANSWERS, strict=True)]
    tokens = torch.randint(VOCAB, (sum(lengths),), generator=generator).numpy().astype(np.int32)
    weights = np.concatenate([np.repeat(np.float32([0, 1]), sizes) for sizes in zip(PROMPTS, ANSWERS, strict=True)])
    old = -6 + torch.randn(sum(ANSWERS), generator=generator)
    return Rollout(
        first_step=0,
        num_steps=1,
        step=np.zeros(6, np.int64),
        row=np.repeat([0, 1, 2], 2),
        example=np.repeat([0, 1, 2], 2),
        tokens=tokens,
        offsets=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        weights=weights,
        advantages=np.float32([1.2, -0.7, 0.4, 0.1, -1.5, 0.6]),
        old_logps=old.numpy().astype(np.float32) if off_policy else None,
    )


def packed(rollout: Rollout, rows: int = 9, packed_length: int = 24) -> list[Batch]:
    """The answers of a rollout as batches."""
    return [batch for batch, _ in rollout.batches(np.arange(6), (rows, packed_length), 0)]


def padded(rollout: Rollout) -> dict[str, Tensor]:
    """The rollout as TRL has it: prompts padded on the left, completions on the right."""
    longest_prompt, longest = max(PROMPTS), max(ANSWERS)
    shapes = {"prompt": longest_prompt, "completion": longest}
    inputs = {
        f"{name}_{kind}": torch.zeros(6, size, dtype=torch.long) for name, size in shapes.items() for kind in ("ids", "mask")
    }
    inputs["old_per_token_logps"] = torch.zeros(6, longest)
    for row, (p, a) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        start = int(rollout.offsets[row])
        tokens = torch.from_numpy(rollout.tokens[start : start + p + a]).long()
        inputs["prompt_ids"][row, longest_prompt - p :], inputs["prompt_mask"][row, longest_prompt - p :] = tokens[:p], 1
        inputs["completion_ids"][row, :a], inputs["completion_mask"][row, :a] = tokens[p:], 1
        if rollout.old_logps is not None:
            begin = int(rollout.target_offsets[row])
            inputs["old_per_token_logps"][row, :a] = torch.from_numpy(rollout.old_logps[begin : begin + a])
    return {**inputs, "advantages": torch.from_numpy(rollout.advantages)}

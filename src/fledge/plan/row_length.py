"""Rows of another length: the keys of a stage that must change with them."""

import math
from typing import Any

from fledge.data import FORMATS
from fledge.recipe.schema import Stage
from fledge.recipe.sections.policy import PolicySettings


def keys_of_length(stage: Stage, length: int, tokens_per_step: int | None, micro: int | None) -> dict[str, Any]:
    """The keys of a stage, and their values, with which rows have `length` tokens, and all that is counted in rows or tokens
    still fits them: limits of prompts and answers, drawn answers, `tokens_per_step`. `tokens_per_step`: as the recipe has it;
    `micro`: the rows of a micro-batch that are written beside it; None: `auto`."""
    keys: dict[str, Any] = {"data.max_seq_len": length}
    for name in ("max_prompt_length", "max_completion_length"):
        if (getattr(stage.data, name) or 0) > length:
            keys[f"data.{name}"] = None
    if isinstance(stage, PolicySettings) and stage.rollout.max_new_tokens > length // 2:
        drawn = stage.rollout.max_new_tokens
        shorter = max(length // 2, drawn * length // stage.data.max_seq_len)  # an answer leaves its prompt half, or its share
        if shorter < drawn:
            keys["rollout.max_new_tokens"] = shorter
    if tokens_per_step is not None:
        of_row = FORMATS[stage.kind].packed_length(length)
        rows = max(1, round(tokens_per_step / of_row))
        if rows * of_row != tokens_per_step:
            keys["batch.tokens_per_step"] = rows * of_row
        if micro is not None and rows % micro:
            keys["batch.micro_batch_size"] = math.gcd(rows, micro)
    return keys

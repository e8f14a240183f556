"""Keys that mean something else in a configuration of GRPO (TRL's GRPOConfig and its relatives) than elsewhere."""

from typing import Any

from fledge.recipe.foreign.answer import Answer, Context, Table, advice, as_integer, for_keys, integer, replaced_by, word

ANSWERS = ("num_generations",)


def _prompts(value: Any, context: Context) -> Answer:
    """The answer to the rows of a micro-batch, which are answers there and prompts here."""
    rows, group = integer(value), context.integer(ANSWERS) or 8
    if rows is None or rows < 1:
        return Answer((("batch.micro_batch_size", as_integer(value)),))
    prompts = max(1, rows // group)
    return Answer((("batch.micro_batch_size", prompts),), f"{rows} answers of {group} to a prompt; fledge counts prompts")


def _completion_length(value: Any, context: Context) -> Answer:
    prompt, answer = context.integer(("max_prompt_length",)), integer(value)
    length = (("data.max_seq_len", prompt + answer),) if prompt and answer else ()
    return Answer((("rollout.max_new_tokens", as_integer(value)), *length))


def _scale(value: Any, context: Context) -> Answer:
    scale = {"yes": "group", "true": "group", "no": "none", "false": "none"}.get(word(value), word(value))
    return Answer((("scale_rewards", scale),))


GRPO_KEYS: Table = {
    "epsilon": replaced_by("epsilon"),
    "num_iterations": advice("rollout.updates_per_rollout is the number of updates that share answers; each reads its own"),
    "mask_truncated_completions": replaced_by("mask_truncated"),
    "scale_rewards": _scale,
    "max_completion_length": _completion_length,
    **for_keys("max_prompt_length", advice("a part of data.max_seq_len, which limits prompt and answer together")),
    **for_keys("per_device_train_batch_size train_batch_size", _prompts),
    **{name: replaced_by(f"rollout.{name}") for name in ("temperature", "top_k", "top_p")},
}
OF_KINDS: dict[str, Table] = {"grpo": GRPO_KEYS}
"""By kind of stage, answers that come before those of the other tables."""

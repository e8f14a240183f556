"""`fledge generate`: one answer to one prompt."""

from dataclasses import replace
from typing import Any

from fledge.chat.output import StoppedAnswer, load, print_answer, system_turn
from fledge.generation import SamplingParams
from fledge.generation.json_schema import JsonSchema
from fledge.tokenizer import Message


def generate_once(
    model_path: str,
    prompt: str,
    params: SamplingParams,
    *,
    adapter: str | None = None,
    system: str | None = None,
    raw: bool = False,
    schema: dict[str, Any] | None = None,
) -> None:
    """`fledge generate MODEL PROMPT`: print the answer to one prompt, or, with `raw`, the continuation of a plain text.
    `adapter`: where an adapter for the model is. `schema`: the answer follows this JSON schema."""
    loaded = load(model_path, () if adapter is None else (adapter,))
    if schema is not None:
        params = replace(params, json_schema=JsonSchema(schema, loaded.tokenizer))
    if raw:
        tokens = loaded.tokenizer.encode_prefix(prompt)
    else:
        tokens = loaded.tokenizer.encode_prompt([*system_turn(system), Message("user", prompt)])
    try:
        print_answer(loaded.engine, loaded.tokenizer, tokens, params)
    except StoppedAnswer:
        raise KeyboardInterrupt from None

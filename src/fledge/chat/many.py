"""`fledge generate MODEL --file`: the answers to all prompts of a file, written as rows that can be trained on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fledge.chat.output import load, tell
from fledge.data.parsing.prompts import Prompt, parse_prompt, prompt_columns
from fledge.data.reading.records import is_among
from fledge.errors import FledgeError, first_line
from fledge.evaluate.sets.rows import read_items
from fledge.generation import Completion, PromptTooLongError, SamplingParams, SwitchableEngine
from fledge.generation.json_schema import JsonSchema
from fledge.generation.request import check_prompt
from fledge.recipe import Source

Made = dict[str, Any]  # the model and the settings of an answer
ROWS = 64  # whose answers are written together: what is lost at most when the command is stopped
NEEDED = "a row is a conversation, a question, a pair of answers or a text"

SETTINGS = ("temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens", "seed")


@dataclass(frozen=True)
class PromptRow:
    """A prompt, and the place of its row."""

    where: str
    prompt: Prompt

    def line(self, answer: str, finish_reason: str, made: Made) -> dict[str, Any]:
        """The row with an answer and how it was made, as JSON values."""
        columns = prompt_columns(self.prompt.turns, self.prompt.tools)
        columns["messages"].append({"role": "assistant", "content": answer})
        return {**columns, "finish_reason": finish_reason, "made": made}


def generate_file(
    model_path: str,
    file: str,
    out: Path,
    params: SamplingParams,
    *,
    adapter: str | None = None,
    system: str | None = None,
    schema: dict[str, Any] | None = None,
    resume: bool = False,
) -> None:
    """Answer the prompts of a file, folder or glob, in the order of their rows, and write a row for each to `out`.

    `system`: the system prompt of rows without one. `resume`: go on behind the answers that `out` has. Rows that are no
    prompts, and prompts that leave no room for an answer, are counted and told.

    Raises FledgeError if no row is left, if `out` is there already, or, with `resume`, if its answers are to other prompts.
    """
    if is_among(out, file):
        raise FledgeError("the answers would be among the prompts", where=str(out), hint="put them into another folder")
    source = Source(path=file)

    def parse(_: str, where: str, row: Any) -> PromptRow:
        return PromptRow(where, parse_prompt(row, source, system).prompt)

    rows, problems = read_items(source, "--file", parse, NEEDED)
    for problem in problems:
        tell(f"no prompt: {problem}")
    loaded = load(model_path, () if adapter is None else (adapter,), together=ROWS)
    if schema is not None:
        params = replace(params, json_schema=JsonSchema(schema, loaded.tokenizer))
    made = {
        "model": model_path,
        "adapter": adapter,
        **{name: getattr(params, name) for name in SETTINGS},
        "json_schema": schema,
    }
    asked = _that_fit(rows, loaded)
    done = _written(out, [row for row, _ in asked], made, resume)
    if done:
        tell(f"{out} has {done:,} answers already")
    _write(out, asked, done, loaded, params, made)


def _that_fit(rows: Sequence[PromptRow], loaded: SwitchableEngine) -> list[tuple[PromptRow, list[int]]]:
    """The rows that leave room for an answer, with their tokens; the others are counted and told."""
    kept, long = [], []
    for row in rows:
        tokens = loaded.tokenizer.encode_prompt(row.prompt.turns, row.prompt.tools)
        try:
            check_prompt(tokens, loaded.engine.max_positions, row.where)
        except PromptTooLongError as error:
            long.append(error)
        else:
            kept.append((row, tokens))
    if long and not kept:
        raise long[0]
    if long:
        positions = loaded.engine.max_positions
        tell(f"not answered: {len(long):,} prompts leave no room among {positions:,} positions, first at {long[0].where}")
    return kept


def _written(out: Path, rows: Sequence[PromptRow], made: Made, resume: bool) -> int:
    """How many answers a file has, which must be to the first of these rows and made in this way; a line that was being written
    is removed."""
    if not out.exists():
        return 0
    if not resume:
        hint = "name another one, or add --resume to go on with it"
        raise FledgeError("this file is there already", where=str(out), hint=hint)
    try:
        content = out.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        found = [json.loads(line) for line in whole.split(b"\n")[:-1]]
        prompts, ways = [one["messages"][:-1] for one in found], [one["made"] for one in found]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FledgeError(f"this is no file of answers: {first_line(error)}", where=str(out), hint="name another one") from None
    expected = json.loads(json.dumps([row.line("", "", made)["messages"][:-1] for row in rows[: len(found)]]))
    if prompts != expected:
        raise FledgeError("its answers are to other prompts", where=str(out), hint="name another file")
    way = json.loads(json.dumps(made))
    if other := next((one for one in ways if one != way), None):
        changed = ", ".join(name for name in made if other.get(name) != made[name])
        raise FledgeError(f"its answers were made in another way: {changed}", where=str(out), hint="name another file")
    if len(whole) < len(content):
        out.write_bytes(whole)
    return len(found)


def _write(
    out: Path,
    asked: Sequence[tuple[PromptRow, list[int]]],
    done: int,
    loaded: SwitchableEngine,
    params: SamplingParams,
    made: Made,
) -> None:
    cut = 0
    try:
        with out.open("a", encoding="utf-8") as output:
            for start in range(done, len(asked), ROWS):
                part = asked[start : start + ROWS]
                completions = loaded.engine.generate(
                    [tokens for _, tokens in part], params, sample_indices=range(start, start + len(part))
                )
                lines = [_line(row, completion, loaded, made) for (row, _), completion in zip(part, completions, strict=True)]
                output.write("".join(lines))
                output.flush()
                cut += sum(completion.finish_reason == "length" for completion in completions)
                tell(f"{start + len(part):,} of {len(asked):,} prompts answered")
    except OSError as error:
        raise FledgeError(f"the answers cannot be written: {first_line(error)}", where=str(out)) from None
    if cut:
        tell(f"{cut:,} answers were cut at {params.max_new_tokens:,} tokens or the last position; finish_reason says which")


def _line(row: PromptRow, completion: Completion, loaded: SwitchableEngine, made: Made) -> str:
    answer = loaded.tokenizer.decode(completion.tokens, skip_special=True)
    return json.dumps(row.line(answer.strip(), completion.finish_reason, made), ensure_ascii=False) + "\n"

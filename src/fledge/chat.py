"""`fledge generate` and `fledge chat`: a model on the terminal, its answer printed as it is generated."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from fledge.errors import FledgeError
from fledge.escaping import escaped
from fledge.generation import (
    Engine,
    PromptTooLongError,
    SamplingParams,
    SwitchableEngine,
    decode_stream,
    find_adapters,
    load_engine,
)
from fledge.generation.json_schema import JsonSchema
from fledge.model.adapter_switch import NO_ADAPTER
from fledge.model.locate import locate_model
from fledge.tokenizer import Message, Tokenizer

HELP = """/help     list these commands
/new      start a new conversation
/adapter  list the adapters; /adapter NAME answers with that one from now on, /adapter none with the base model alone
/quit     leave; so do /exit and the end of the input
Put a blank before a message that begins with a slash. Arrow keys edit the line and bring back earlier ones."""
ANSWER_FRACTION = 4  # a quarter of the positions is kept for the answer, unless it may have fewer tokens
_COMMAND = re.compile(r"[/／][^\s/／]*(\s|$)")  # a path such as /usr/bin is none


def _load(path: str, adapters: Sequence[str] = ()) -> SwitchableEngine:
    """The engine for one request at a time, and the tokenizer, of a run, stage, checkpoint, model directory or GGUF file, with
    adapters."""
    return load_engine(locate_model(path, _tell), _tell, max_batch_size=1, adapters=find_adapters(adapters))


def _tell(text: str) -> None:
    """Show a line that is not of the model."""
    print(escaped(text), file=sys.stderr)


def _print_answer(engine: Engine, tokenizer: Tokenizer, prompt: list[int], params: SamplingParams) -> str:
    """Print the answer to a tokenised prompt as it is generated, and return it."""
    answer = []
    for text in decode_stream(tokenizer, engine.stream(prompt, params)):
        answer.append(text)
        print(escaped(text), end="", flush=True)
    print()
    return "".join(answer)


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
    loaded = _load(model_path, () if adapter is None else (adapter,))
    if schema is not None:
        params = replace(params, json_schema=JsonSchema(schema, loaded.tokenizer))
    if raw:
        tokens = loaded.tokenizer.encode_prefix(prompt)
    else:
        tokens = loaded.tokenizer.encode_prompt([*_system_turn(system), Message("user", prompt)])
    _print_answer(loaded.engine, loaded.tokenizer, tokens, params)


def chat(model_path: str, params: SamplingParams, *, adapters: Sequence[str] = (), system: str | None = None) -> None:
    """`fledge chat MODEL`: read messages from the terminal and answer them; `HELP` lists the commands.

    `adapters`: where adapters for the model are; the first one answers, until another is chosen.

    When a conversation becomes too long for the model, its oldest rounds are left out, and a line says so.
    """
    _edit_lines()
    loaded = _load(model_path, adapters)
    messages = _system_turn(system)
    _tell(f"talking to {model_path}{_with_adapter(loaded)}; /help lists the commands, /quit leaves")
    while True:
        try:
            line = input("› ").rstrip()
        except EOFError:
            print()
            return
        if line in ("/quit", "/exit"):
            return
        if line == "/new":
            messages = _system_turn(system)
        elif line == "/help":
            _tell(HELP)
        elif re.match(r"/adapter(\s|$)", line):
            _choose_adapter(loaded, line.removeprefix("/adapter").strip())
        elif _COMMAND.match(line):
            _tell(f"'{line}' is no command, and was not sent: /help lists them")
        elif text := line.strip():
            with _shown_errors():
                asked, prompt = _fitted(loaded.engine, loaded.tokenizer, [*messages, Message("user", text)], params)
                answer = _print_answer(loaded.engine, loaded.tokenizer, prompt, params)
                messages = [*asked, Message("assistant", answer.strip())]  # a template may write a blank before it


def _choose_adapter(loaded: SwitchableEngine, name: str) -> None:
    """`/adapter NAME`: answer with another adapter; without a name, list them."""
    if not name:
        names = [*loaded.adapters, NO_ADAPTER] if loaded.adapters else []
        in_use = NO_ADAPTER if loaded.active is None else loaded.active
        listed = ", ".join(f"{one} (in use)" if one == in_use else one for one in names)
        _tell(f"adapters: {listed}" if listed else "there are no adapters: start with fledge chat MODEL --adapter DIR")
        return
    with _shown_errors():
        loaded.set_adapter(name)
        _tell(f"the next answer is{_with_adapter(loaded) or ' of the base model alone'}; /new starts a new conversation")


def _with_adapter(loaded: SwitchableEngine) -> str:
    return "" if loaded.active is None else f" with the adapter {loaded.active}"


def _edit_lines() -> None:
    """Let arrow keys edit the line that is typed, where Python has readline."""
    if sys.stdin.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401 - `input` uses it once it is loaded


@contextmanager
def _shown_errors() -> Iterator[None]:
    """Show a FledgeError; the conversation goes on as it was before."""
    try:
        yield
    except PromptTooLongError as error:
        _tell(FledgeError(error.what, where="this message", hint="write a shorter one").text())
    except FledgeError as error:
        _tell(error.text())


def _fitted(
    engine: Engine, tokenizer: Tokenizer, messages: list[Message], params: SamplingParams
) -> tuple[list[Message], list[int]]:
    """The messages without the oldest rounds that leave no room for an answer, and their tokens."""
    room = min(params.max_new_tokens, engine.max_positions // ANSWER_FRACTION)
    system = [message for message in messages[:1] if message.role == "system"]
    rounds, dropped = messages[len(system) :], 0  # question, answer, question, answer, …, question
    prompt = tokenizer.encode_prompt(messages)
    while len(prompt) + room > engine.max_positions and len(rounds) > 1:
        rounds, dropped = rounds[2:], dropped + 1
        prompt = tokenizer.encode_prompt([*system, *rounds])
    if dropped:
        left_out = "the oldest round is" if dropped == 1 else f"the {dropped} oldest rounds are"
        _tell(f"note: {left_out} left out: the model has {engine.max_positions:,} positions for a conversation and its answer")
    return [*system, *rounds], prompt


def _system_turn(system: str | None) -> list[Message]:
    return [Message("system", system)] if system else []

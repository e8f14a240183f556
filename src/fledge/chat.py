"""`fledge generate` and `fledge chat`: a model on the terminal, its answer printed as it is generated."""

import sys

from fledge.errors import FledgeError
from fledge.escaping import escaped
from fledge.generation import Engine, PromptTooLongError, SamplingParams, decode_stream, load_engine
from fledge.run import resolve_model_path
from fledge.tokenizer import Message, Tokenizer


def _load(path: str) -> tuple[Engine, Tokenizer]:
    """The engine for one request at a time, and the tokenizer, of a run, stage, checkpoint or model directory."""
    return load_engine(resolve_model_path(path), lambda text: print(escaped(text), file=sys.stderr), max_batch_size=1)


def _print_answer(engine: Engine, tokenizer: Tokenizer, prompt: list[int], params: SamplingParams) -> str:
    """Print the answer to a tokenised prompt as it is generated, and return it."""
    answer = []
    for text in decode_stream(tokenizer, engine.stream(prompt, params)):
        answer.append(text)
        print(escaped(text), end="", flush=True)
    print()
    return "".join(answer)


def generate_once(
    model_path: str, prompt: str, params: SamplingParams, *, system: str | None = None, raw: bool = False
) -> None:
    """`fledge generate MODEL PROMPT`: print the answer to one prompt, or, with `raw`, the continuation of a plain text."""
    engine, tokenizer = _load(model_path)
    if raw:
        tokens = tokenizer.encode_prefix(prompt)
    else:
        tokens = tokenizer.encode_prompt([*_system_turn(system), Message("user", prompt)])
    _print_answer(engine, tokenizer, tokens, params)


def chat(model_path: str, params: SamplingParams, *, system: str | None = None) -> None:
    """`fledge chat MODEL`: read turns from the terminal and answer them. /new forgets the conversation, /quit leaves."""
    engine, tokenizer = _load(model_path)
    messages = _system_turn(system)
    print(escaped(f"talking to {model_path}; /new starts a new conversation, /quit leaves"), file=sys.stderr)
    while True:
        try:
            text = input("› ").strip()
        except EOFError:
            print()
            return
        if text in ("/quit", "/exit"):
            return
        if text == "/new":
            messages = _system_turn(system)
            continue
        if not text:
            continue
        question = Message("user", text)
        try:
            answer = _print_answer(engine, tokenizer, tokenizer.encode_prompt([*messages, question]), params)
            messages += [question, Message("assistant", answer.strip())]  # a template may write a blank before it
        except PromptTooLongError as error:
            print(
                escaped(FledgeError(error.what, where="the conversation", hint="start a new one with /new").text()),
                file=sys.stderr,
            )
        except FledgeError as error:
            print(escaped(error.text()), file=sys.stderr)


def _system_turn(system: str | None) -> list[Message]:
    return [Message("system", system)] if system else []

"""Talking to a model on the terminal, its answer shown as it is made."""

import argparse
import sys
from collections.abc import Iterable, Iterator

from fledge.errors import FledgeError
from fledge.generation.engine import SamplingParams, stream
from fledge.model.loading import load_model
from fledge.model.protocol import LanguageModel
from fledge.run import resolve_model_path
from fledge.tokenizer import Message, Tokenizer, load_tokenizer


def _load(place: str) -> tuple[LanguageModel, Tokenizer]:
    folder = resolve_model_path(place)
    model, tokenizer = load_model(folder, log=lambda text: print(text, file=sys.stderr)), load_tokenizer(folder)
    if tokenizer.vocab_size > model.vocab_size:
        raise FledgeError(
            f"the chat template needs control tokens that this model has never seen: it knows {model.vocab_size:,} tokens, "
            f"the tokenizer with them has {tokenizer.vocab_size:,}",
            where=str(folder),
        )
    model.eval()
    return model, tokenizer


def _sampling(options: argparse.Namespace) -> SamplingParams:
    bounds = (
        ("--temperature", options.temperature >= 0, "0 or more"),
        ("--top-k", options.top_k >= 0, "0 or more"),
        ("--top-p", 0 < options.top_p <= 1, "above 0, at most 1"),
        ("--repetition-penalty", options.repetition_penalty > 0, "above 0"),
        ("--max-new-tokens", options.max_new_tokens > 0, "1 or more"),
    )
    for name, good, expected in bounds:
        if not good:
            raise FledgeError(f"{name} must be {expected}")
    return SamplingParams(
        options.temperature, options.top_k, options.top_p, options.repetition_penalty, options.max_new_tokens, options.seed
    )


def pieces(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """Text as soon as it is whole: a character of several tokens appears with its last one."""
    ids: list[int] = []
    said = text = ""
    for token in tokens:
        ids.append(token)
        text = tokenizer.decode(ids, skip_special=True)
        if not text.endswith("\ufffd"):
            yield text[len(said) :]
            said = text
    if len(text) > len(said):
        yield text[len(said) :]


def _answer(model: LanguageModel, tokenizer: Tokenizer, prompt: list[int], sampling: SamplingParams) -> str:
    if not prompt:
        raise FledgeError("the prompt is empty")
    most = model.config.max_position_embeddings
    if len(prompt) >= most:
        raise FledgeError(
            f"the conversation has {len(prompt):,} tokens, the model has room for {most:,}", hint="start anew with /new"
        )
    said = []
    for text in pieces(tokenizer, stream(model, prompt, tokenizer.stop_ids, sampling)):
        said.append(text)
        print(text, end="", flush=True)
    print()
    return "".join(said)


def generate_once(options: argparse.Namespace) -> None:
    """`fledge generate MODEL PROMPT`."""
    sampling = _sampling(options)
    model, tokenizer = _load(options.model)
    if options.raw:
        prompt = tokenizer.encode_prefix(options.prompt)
    else:
        system = [Message("system", options.system)] if options.system else []
        prompt = tokenizer.encode_prompt([*system, Message("user", options.prompt)])
    _answer(model, tokenizer, prompt, sampling)


def chat(options: argparse.Namespace) -> None:
    """`fledge chat MODEL`: /new forgets the conversation, /quit leaves."""
    sampling = _sampling(options)
    model, tokenizer = _load(options.model)
    head = [Message("system", options.system)] if options.system else []
    turns = list(head)
    print(f"talking to {options.model}; /new starts anew, /quit leaves", file=sys.stderr)
    while True:
        try:
            text = input("› ").strip()
        except EOFError:
            print()
            return
        if text in ("/quit", "/exit"):
            return
        if text == "/new":
            turns = list(head)
            continue
        if not text:
            continue
        turns.append(Message("user", text))
        try:
            turns.append(Message("assistant", _answer(model, tokenizer, tokenizer.encode_prompt(turns), sampling)))
        except FledgeError as error:
            turns.pop()
            print(error.text(), file=sys.stderr)

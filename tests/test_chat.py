"""`fledge generate` and `fledge chat`: what they print, and that a conversation packs the weights once."""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from fledge.chat import chat, generate_once
from fledge.escaping import escaped
from fledge.generation import PromptTooLongError, SamplingParams
from fledge.generation.native import InferenceModel
from fledge.model.decoder import Decoder
from fledge.model.pretrained import from_pretrained
from fledge.tokenizer import Message, Tokenizer, load_tokenizer
from tests.support.generating import generate
from tests.support.small_model import write_model

PARAMS = SamplingParams(temperature=0.8, seed=3, max_new_tokens=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with its tokenizer."""
    return write_model(tmp_path_factory.mktemp("model"))


def loaded(folder: Path) -> tuple[Decoder, Tokenizer]:
    """The model and the tokenizer of a directory."""
    return from_pretrained(folder), load_tokenizer(folder)


def answer(folder: Path, messages: list[Message], params: SamplingParams = PARAMS) -> str:
    """The answer that `generate` gives."""
    model, tokenizer = loaded(folder)
    (completion,) = generate(model, [tokenizer.encode_prompt(messages)], tokenizer.stop_ids, params)
    return tokenizer.decode(completion.tokens, skip_special=True)


def shown(folder: Path, messages: list[Message]) -> str:
    """The answer that `generate` gives, as the terminal shows it: this model's answers hold control characters."""
    return escaped(answer(folder, messages))


def type_lines(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Simulate lines that a person types, followed by the end of the input."""
    rest: Iterator[str] = iter(lines)

    def read(prompt: str) -> str:
        try:
            return next(rest)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)


@pytest.mark.parametrize("system", [None, "Be short."])
def test_a_conversation_remembers_its_turns_until_new(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], system: str | None
) -> None:
    head = [Message("system", system)] if system else []
    first = answer(folder, [*head, Message("user", "What is a cat?")])
    messages = [*head, Message("user", "What is a cat?"), Message("assistant", first), Message("user", "And a dog?")]
    second = answer(folder, messages)
    type_lines(monkeypatch, "What is a cat?", " And a dog? ", "", "/new", "What is a cat?", "/quit", "never read")
    chat(str(folder), PARAMS, system=system)
    assert capsys.readouterr().out == escaped(f"{first}\n{second}\n{first}\n")


def test_the_weights_are_packed_once_for_a_whole_conversation(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = []
    build = InferenceModel.__init__

    def counted(self: InferenceModel, model: Decoder) -> None:
        packed.append(model)
        build(self, model)

    monkeypatch.setattr(InferenceModel, "__init__", counted)
    type_lines(monkeypatch, "What is a cat?", "And a dog?", "/new", "Dogs?")
    chat(str(folder), PARAMS)
    assert len(capsys.readouterr().out.splitlines()) >= 3
    assert len(packed) == 1


@pytest.mark.parametrize("system", [None, "Be short."])
def test_the_oldest_rounds_are_left_out_of_a_conversation_that_is_too_long(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], system: str | None
) -> None:
    _, tokenizer = loaded(folder)
    head, rounds, answers, notes = [Message("system", system)] if system else [], [], [], 0
    questions = [f"What is a dog? {number}" for number in range(8)]
    for question in questions:
        rounds.append(Message("user", question))
        before = len(rounds)
        while len(tokenizer.encode_prompt([*head, *rounds])) + PARAMS.max_new_tokens > 100:
            del rounds[:2]
        notes += len(rounds) < before
        answers.append(answer(folder, [*head, *rounds]))
        rounds.append(Message("assistant", answers[-1].strip()))
    type_lines(monkeypatch, *questions, "/quit")
    chat(str(folder), PARAMS, system=system)
    captured = capsys.readouterr()
    assert captured.out == "".join(f"{escaped(text)}\n" for text in answers)
    assert notes > 1 and captured.err.count("left out: the model has 100 positions") == notes


def test_one_message_that_is_too_long_is_refused_and_forgotten(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_lines(monkeypatch, "dog " * 200, "What is a cat?")
    chat(str(folder), PARAMS)
    captured = capsys.readouterr()
    assert "this message: it has" in captured.err and "the model has 100 positions" in captured.err
    assert captured.out == shown(folder, [Message("user", "What is a cat?")]) + "\n\n"  # the last line ends the input


def test_commands_are_not_sent_to_the_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_lines(monkeypatch, "/help", "/nwe", "/new please", "/", "／new", " /nwe", "/usr/bin is what?", "/exit", "never read")
    chat(str(folder), PARAMS)
    captured = capsys.readouterr()
    assert all(f"\n{command} " in captured.err for command in ("/help", "/new", "/quit"))
    assert [line.split("'")[1] for line in captured.err.splitlines() if "is no command" in line] == [
        "/nwe", "/new please", "/", "／new",
    ]  # fmt: skip
    first = answer(folder, [Message("user", "/nwe")])
    second = answer(
        folder, [Message("user", "/nwe"), Message("assistant", first.strip()), Message("user", "/usr/bin is what?")]
    )
    assert captured.out == escaped(f"{first}\n{second}\n")


@pytest.mark.skipif(find_spec("readline") is None, reason="this Python has no readline")
def test_arrow_keys_edit_the_line() -> None:
    pty = pytest.importorskip("pty")
    code = "from fledge.chat import _edit_lines; _edit_lines(); print(ascii(input('> ')))"
    main, terminal = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", code], stdin=terminal, stdout=terminal, stderr=terminal) as process:
        os.write(main, b"ac\x1b[Db\n")
        process.wait(60)
        os.close(terminal)
        assert b"'abc'" in os.read(main, 1000)
    os.close(main)


def test_generate_answers_one_prompt_by_the_chat_template_or_continues_a_raw_text(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate_once(str(folder), "What is a cat?", PARAMS, system="Be short.")
    expected = shown(folder, [Message("system", "Be short."), Message("user", "What is a cat?")])
    assert capsys.readouterr().out == expected + "\n"
    model, tokenizer = loaded(folder)
    generate_once(str(folder), "A cat is", PARAMS, raw=True)
    (completion,) = generate(model, [tokenizer.encode_prefix("A cat is")], tokenizer.stop_ids, PARAMS)
    assert capsys.readouterr().out == escaped(tokenizer.decode(completion.tokens, skip_special=True)) + "\n"


def test_generate_names_a_prompt_that_is_too_long(folder: Path) -> None:
    with pytest.raises(PromptTooLongError, match=r"prompt: it has .* tokens, .* 100 positions"):
        generate_once(str(folder), "dog " * 200, PARAMS)

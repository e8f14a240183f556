"""`fledge generate` and `fledge chat`: what they print, and that a conversation packs the weights once."""

import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from fledge.chat import chat, generate_file, generate_once
from fledge.chat.conversation import Conversation
from fledge.chat.reader import TerminalReader, open_history
from fledge.chat.session import COMMANDS
from fledge.cli import main
from fledge.errors import FledgeError
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


@pytest.fixture
def typed() -> Iterator[tuple[TerminalReader, Callable[[str], None]]]:
    """A reader of a terminal, and a function that types keys into it."""
    with create_pipe_input() as keys:
        yield TerminalReader(COMMANDS, InMemoryHistory(), input=keys, output=DummyOutput()), keys.send_text


@pytest.mark.parametrize(
    ("keys", "read"),
    [
        ("ac\x1b[Db\r", ["abc"]),
        ("\x1b[200~first\nsecond\x1b[201~\r", ["first\nsecond"]),  # pasted lines
        ("first\x1b\rsecond\r", ["first\nsecond"]),  # Alt-Enter
        ("你好\x7f吗\r", ["你吗"]),
    ],
)
def test_a_line_is_edited_as_on_any_terminal(
    typed: tuple[TerminalReader, Callable[[str], None]], keys: str, read: list[str]
) -> None:
    reader, send = typed
    send(keys)
    assert [reader() for _ in read] == read


def test_the_arrow_up_brings_back_earlier_messages_and_the_tabulator_completes_commands(
    typed: tuple[TerminalReader, Callable[[str], None]],
) -> None:
    reader, send = typed
    send("one\rtwo\r")
    assert [reader(), reader()] == ["one", "two"]
    for first, then, read in (("", "\x1b[A\x1b[A\r", "one"), ("/und\t", "\r", "/undo")):
        send(first)
        later = threading.Timer(0.5, send, (then,))  # history and completions are found while a person types
        later.start()
        assert reader() == read
        later.join()


def test_ctrl_c_empties_the_line_and_ctrl_d_leaves(
    typed: tuple[TerminalReader, Callable[[str], None]], capsys: pytest.CaptureFixture[str]
) -> None:
    reader, send = typed
    send("not this\x03but this\r")
    assert reader() == "but this"
    assert "Ctrl-D" in capsys.readouterr().err
    send("\x04")
    with pytest.raises(EOFError):
        reader()


def test_messages_of_earlier_conversations_are_kept_for_their_owner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEDGE_CACHE", str(tmp_path / "cache"))
    for message in ("你好", "two\nlines"):
        history = open_history()
        assert history is not None
        history.append_string(message)
    again = open_history()
    assert again is not None and list(again.load_history_strings()) == ["two\nlines", "你好"]
    assert (tmp_path / "cache" / "chat_history").stat().st_mode & 0o777 == 0o600


def test_undo_takes_back_the_last_round(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = answer(folder, [Message("user", "What is a cat?")])
    other = answer(folder, [Message("user", "Dogs?")])
    second = answer(
        folder, [Message("user", "What is a cat?"), Message("assistant", first.strip()), Message("user", "And a dog?")]
    )
    type_lines(monkeypatch, "/undo", "What is a cat?", "Dogs!", "/undo", "And a dog?", "/undo", "/undo", "Dogs?")
    chat(str(folder), PARAMS)
    captured = capsys.readouterr()
    out = captured.out
    assert out.startswith(escaped(f"{first}\n")) and out.endswith(escaped(f"{second}\n{other}\n") + "\n")
    assert captured.err.count("taken back: ") == 3 and captured.err.count("nothing to take back") == 1


def test_rounds_that_were_left_out_come_back_when_there_is_room(folder: Path) -> None:
    _, tokenizer = loaded(folder)
    talk, most = Conversation(), 60
    for number in range(8):
        _, start = talk.fitted(f"What is a dog? {number}", tokenizer.encode_prompt, most)
        talk.add(f"What is a dog? {number}", "A dog is an animal.", start)
    assert talk.start > 0
    while talk.rounds:
        talk.undo()
        prompt, start = talk.fitted("Hm?", tokenizer.encode_prompt, most)
        turns = [*talk.rounds, Message("user", "Hm?")]
        fitting = (one for one in range(0, len(turns), 2) if len(tokenizer.encode_prompt(turns[one:])) <= most)
        assert start == next(fitting) and prompt == tokenizer.encode_prompt(turns[start:])


def test_the_system_prompt_can_be_changed_while_talking(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = answer(folder, [Message("system", "Be short."), Message("user", "What is a cat?")])
    plain = answer(folder, [Message("user", "What is a cat?")])
    type_lines(
        monkeypatch,
        "/system",
        "/system Be short.",
        "What is a cat?",
        "/new",
        "What is a cat?",
        "/new",
        "/system none",
        "What is a cat?",
    )
    chat(str(folder), PARAMS)
    captured = capsys.readouterr()
    assert captured.out == escaped(f"{short}\n{short}\n{plain}\n") + "\n"
    assert captured.err.count("there is no system prompt") == 2 and captured.err.count("the system prompt is: Be short.") == 1


def test_a_conversation_is_saved_as_rows_that_can_be_trained_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "talks.jsonl"
    file.write_text('{"messages": []}')  # a row of another program, without a line end
    type_lines(
        monkeypatch, f"/save {file}", "What is a cat?", "And a dog?", "/save", f"/save {tmp_path}/talk.txt", f"/save {file}",
        "/new", "Dogs?", f"/save {tmp_path}/no/folder.jsonl", f"/save {file}",
    )  # fmt: skip
    chat(str(folder), PARAMS, system="Be short.")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    first = answer(folder, [Message("system", "Be short."), Message("user", "What is a cat?")]).strip()
    roles = [[turn["role"] for turn in row["messages"]] for row in rows]
    assert roles == [[], ["system", *["user", "assistant"] * 2], ["system", "user", "assistant"]]
    assert rows[1]["messages"][2]["content"] == first
    told = capsys.readouterr().err
    for words in (
        "nothing to save",
        "name the file",
        "one line of a .jsonl file",
        "cannot be saved",
        "2 rounds saved",
        "1 round saved",
    ):
        assert words in told


def test_ctrl_c_stops_one_answer_after_another_and_the_conversation_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    class Impatient(io.StringIO):
        """Sends Ctrl-C when the first piece of an answer is written."""

        def write(self, text: str) -> int:
            if text.strip():
                os.kill(os.getpid(), signal.SIGINT)
            return super().write(text)

    file, output = tmp_path / "talk.jsonl", Impatient()
    monkeypatch.setattr(sys, "stdout", output)
    type_lines(monkeypatch, "What is a cat?", "And a dog?", f"/save {file}")
    before = signal.getsignal(signal.SIGINT)
    chat(str(folder), SamplingParams(temperature=0.8, seed=3, max_new_tokens=40))
    assert signal.getsignal(signal.SIGINT) is before
    (row,) = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    whole = answer(folder, [Message("user", "What is a cat?")], SamplingParams(temperature=0.8, seed=3, max_new_tokens=40))
    assert len(row["messages"]) == 4 and capsys.readouterr().err.count("stopped; the answer so far") == 2
    assert whole.strip().startswith(row["messages"][1]["content"]) and row["messages"][1]["content"] != whole.strip()


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


# -- prompts of a file ------------------------------------------------------------------------------------------------------


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """A file with four prompts, one row that is none, and a prompt that is too long."""
    rows = [
        {"prompt": "What is a cat?"},
        {"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "And a dog?"}]},
        {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "not this"}]},
        {"number": 3},
        {"prompt": "dog " * 200},
        {"prompt": "Dogs?"},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def rows_in(file: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON Lines."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_the_prompts_of_a_file_are_answered_in_their_order(
    folder: Path, prompts: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out, greedy = tmp_path / "answers" / "a.jsonl", SamplingParams(max_new_tokens=6)
    out.parent.mkdir()
    generate_file(str(folder), str(prompts), out, greedy, system="Be kind.")
    rows, told = rows_in(out), capsys.readouterr().err
    kind, short = Message("system", "Be kind."), Message("system", "Be short.")
    asked = [[kind, Message("user", "What is a cat?")], [short, Message("user", "And a dog?")], [kind, Message("user", "Hi.")]]
    asked.append([kind, Message("user", "Dogs?")])
    assert [[(turn["role"], turn["content"]) for turn in row["messages"]] for row in rows] == [
        [*((one.role, one.content) for one in messages), ("assistant", answer(folder, messages, greedy).strip())]
        for messages in asked
    ]
    assert {row["finish_reason"] for row in rows} <= {"stop", "length"}
    assert "no prompt: 1 × " in told and "not answered: 1 prompts leave no room" in told and "prompts.jsonl:5" in told


def test_answers_to_a_file_go_on_where_they_were_stopped(
    folder: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("fledge.chat.many.ROWS", 2)
    whole, stopped = tmp_path / "out1" / "a.jsonl", tmp_path / "out2" / "a.jsonl"
    for file in (whole, stopped):
        file.parent.mkdir()
    generate_file(str(folder), str(prompts), whole, PARAMS)
    with pytest.raises(FledgeError, match="there already"):
        generate_file(str(folder), str(prompts), whole, PARAMS)
    lines = whole.read_bytes().splitlines(keepends=True)
    stopped.write_bytes(b"".join(lines[:2]) + lines[2][:9])  # killed while the third one was written
    generate_file(str(folder), str(prompts), stopped, PARAMS, resume=True)
    assert stopped.read_bytes() == whole.read_bytes()
    with pytest.raises(FledgeError, match="other prompts"):
        generate_file(str(folder), str(prompts), stopped, PARAMS, system="Be kind.", resume=True)
    with pytest.raises(FledgeError, match="another way: temperature"):
        generate_file(str(folder), str(prompts), stopped, SamplingParams(seed=3, max_new_tokens=6), resume=True)
    stopped.write_text("no answers\n")
    with pytest.raises(FledgeError, match="no file of answers"):
        generate_file(str(folder), str(prompts), stopped, PARAMS, resume=True)
    with pytest.raises(FledgeError, match="no file of answers"):
        generate_file(str(folder), str(prompts), stopped.parent, PARAMS, resume=True)


def test_answers_are_not_written_among_their_prompts(folder: Path, prompts: Path) -> None:
    with pytest.raises(FledgeError, match="among the prompts"):
        generate_file(str(folder), str(prompts.parent), prompts.parent / "answers.jsonl", PARAMS)
    assert not (prompts.parent / "answers.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name PROMPT or --file"),
        (["Hi.", "--file", "a.jsonl"], "a file of them"),
        (["Hi.", "--out", "b.jsonl"], "--out: this is for the answers to a file"),
        (["Hi.", "--resume"], "--resume: this is for the answers to a file"),
        (["--file", "a.jsonl"], "name the file for the answers"),
        (["--file", "a.jsonl", "--out", "b.jsonl", "--raw"], "--raw: the prompts of a file"),
        (["--file", "nothing.jsonl", "--out", "b.jsonl"], "nothing.jsonl"),
    ],
)
def test_generate_says_what_it_needs(
    folder: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["generate", str(folder), *options]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "b.jsonl").exists()

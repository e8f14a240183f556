"""`fledge chat`: messages are read, answered and remembered; lines that begin with a slash are commands."""

import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fledge.chat.conversation import Conversation
from fledge.chat.output import StoppedAnswer, load, print_answer, tell
from fledge.chat.reader import line_reader
from fledge.errors import FledgeError
from fledge.generation import PromptTooLongError, SamplingParams, SwitchableEngine
from fledge.localization import localized
from fledge.model.adapter_switch import NO_ADAPTER

ANSWER_FRACTION = 4  # a quarter of the positions is kept for the answer, unless it may have fewer tokens
NO_SYSTEM = "none"
_COMMAND = re.compile(r"[/／][^\s/／]*(\s|$)")  # a path such as /usr/bin is none


@dataclass
class Session:
    """A model that is talked to, and the conversation."""

    loaded: SwitchableEngine
    params: SamplingParams
    conversation: Conversation

    def answer(self, text: str) -> None:
        """Print the answer to a message and remember both. What cannot be answered is told and forgotten."""
        engine, tokenizer = self.loaded.engine, self.loaded.tokenizer
        room = min(self.params.max_new_tokens, engine.max_positions // ANSWER_FRACTION)
        before = self.conversation.start
        with _shown_errors():
            prompt, start = self.conversation.fitted(text, tokenizer.encode_prompt, engine.max_positions - room)
            if start > before:
                dropped = (start - before) // 2
                left_out = "the oldest round is" if dropped == 1 else f"the {dropped} oldest rounds are"
                positions = f"{engine.max_positions:,} positions for a conversation and its answer"
                tell(f"note: {left_out} left out: the model has {positions}")
            try:
                answer = print_answer(engine, tokenizer, prompt, self.params).strip()  # a template may write a blank before it
            except StoppedAnswer as stopped:
                answer = stopped.text.strip()
                tell("stopped; the answer so far is remembered, /undo takes it back" if answer else "stopped before an answer")
                if not answer:
                    return
            self.conversation.add(text, answer, start)


def chat(model_path: str, params: SamplingParams, *, adapters: Sequence[str] = (), system: str | None = None) -> None:
    """`fledge chat MODEL`: read messages from the terminal and answer them; COMMANDS are the lines that are not sent.

    `adapters`: where adapters for the model are; the first one answers, until another is chosen.

    When a conversation becomes too long for the model, its oldest rounds are left out, and a line says so.
    """
    read = line_reader(COMMANDS)
    session = Session(load(model_path, adapters), params, Conversation(system or None))
    adapter = session.loaded.active
    tell(f"talking to {model_path}" if adapter is None else f"talking to {model_path} with the adapter {adapter}")
    tell("/help lists the commands, /quit leaves")
    with _interrupts_as_in_python():
        while True:
            try:
                line = read().rstrip()
            except EOFError:
                print()
                return
            if not _COMMAND.match(line):
                if text := line.strip():
                    session.answer(text)
            elif not _obeyed(session, line):
                return


def _obeyed(session: Session, line: str) -> bool:
    """Do what a line that begins with a slash says; False if it says to leave."""
    name, *rest = line.split(maxsplit=1)
    command = COMMANDS.get(name)
    if command is None or (rest and not command.argument):
        tell(f"'{line}' is no command, and was not sent: /help lists them")
    elif command.run is None:
        return False
    else:
        with _shown_errors():
            command.run(session, "".join(rest))
    return True


@contextmanager
def _interrupts_as_in_python() -> Iterator[None]:
    """Every Ctrl-C raises KeyboardInterrupt inside, so that it can stop one answer after another."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _help(session: Session, _: str) -> None:
    width = max(len(f"{name} {command.argument}") for name, command in COMMANDS.items()) + 2
    for name, command in COMMANDS.items():
        if command.help:
            tell(f"{f'{name} {command.argument}'.strip():<{width}}{localized(command.help)}")
    tell(KEYS)


def _new(session: Session, _: str) -> None:
    session.conversation.clear()


def _undo(session: Session, _: str) -> None:
    question = session.conversation.undo()
    left = len(session.conversation.rounds) // 2
    stays = "no round is left" if not left else "1 round before it stays" if left == 1 else f"{left} rounds before it stay"
    tell("there is nothing to take back" if question is None else f"taken back: {question} ({stays})")


def _system(session: Session, text: str) -> None:
    """Show the system prompt, or set it from the next answer on."""
    if text:
        session.conversation.system = None if text == NO_SYSTEM else text
        session.conversation.start = 0  # a shorter one leaves room for more rounds
    now = session.conversation.system
    tell(f"the system prompt is: {now}" if now else "there is no system prompt")


def _save(session: Session, name: str) -> None:
    """Append the conversation to a file of rows."""
    if not name:
        raise FledgeError("name the file", where="/save", hint="/save talks.jsonl")
    rounds = session.conversation.save(Path(name).expanduser())
    tell(f"{rounds} round{'s' * (rounds > 1)} saved as one more row of {name}; fledge train can read it")


def _adapter(session: Session, name: str) -> None:
    """Answer with another adapter; without a name, list them."""
    loaded = session.loaded
    if not name:
        names = [*loaded.adapters, NO_ADAPTER] if loaded.adapters else []
        in_use = NO_ADAPTER if loaded.active is None else loaded.active
        listed = ", ".join(f"{one} (in use)" if one == in_use else one for one in names)
        tell(f"adapters: {listed}" if listed else "there are no adapters: start with fledge chat MODEL --adapter DIR")
        return
    loaded.set_adapter(name)
    by = "by the base model alone" if loaded.active is None else f"with the adapter {loaded.active}"
    tell(f"the next answer is {by}; /new starts a new conversation")


@dataclass(frozen=True)
class Command:
    """A line that is not sent to the model. `argument`: what may follow its name, "" for nothing. `run`: None leaves."""

    run: Callable[[Session, str], None] | None
    help: str
    argument: str = ""


COMMANDS = {
    "/help": Command(_help, "list these commands"),
    "/new": Command(_new, "start a new conversation"),
    "/undo": Command(_undo, "take back the last question and its answer"),
    "/system": Command(_system, f"show the system prompt, or answer by this one from now on; {NO_SYSTEM}: without", "TEXT"),
    "/save": Command(_save, "append the conversation to a .jsonl file, as a row that can be trained on", "FILE"),
    "/adapter": Command(
        _adapter, f"list the adapters, or answer with this one; {NO_ADAPTER}: with the base model alone", "NAME"
    ),
    "/quit": Command(None, "leave; so do /exit, Ctrl-D and the end of the input"),
    "/exit": Command(None, ""),
}
KEYS = (
    "Put a blank before a message that begins with a slash. Arrow keys edit the line and bring back earlier ones, Alt-Enter "
    "begins a new line, pasted lines are one message, and Ctrl-C stops an answer."
)


@contextmanager
def _shown_errors() -> Iterator[None]:
    """Show a FledgeError; the conversation goes on as it was before."""
    try:
        yield
    except PromptTooLongError as error:
        tell(FledgeError(error.what, where="this message", hint="write a shorter one").text(localized))
    except FledgeError as error:
        tell(error.text(localized))

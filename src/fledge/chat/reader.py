"""Reading what a person types: on a terminal with editing, history and pasted lines, else line by line."""

import os
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from fledge.chat.output import tell
from fledge.run.cache import cache_folder

if TYPE_CHECKING:
    from prompt_toolkit.history import FileHistory

PROMPT = "› "
HISTORY = "chat_history"
LEAVE = "press Ctrl-D or type /quit to leave"


def line_reader(commands: Iterable[str]) -> Callable[[], str]:
    """A function that reads one message; it raises EOFError at the end of the input, and KeyboardInterrupt at Ctrl-C where no
    person types. `commands` are completed with the tabulator."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        return TerminalReader(commands, history=open_history())
    return lambda: input(PROMPT)


def open_history() -> "FileHistory | None":
    """The messages of earlier conversations, in a file that only its owner can read; None where no file can be written."""
    from prompt_toolkit.history import FileHistory

    file = cache_folder() / HISTORY
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        tell(f"note: messages are not kept for the next time: {error}")
        return None
    return FileHistory(str(file))


class TerminalReader:
    """Reads messages with prompt_toolkit: arrow keys edit and bring back earlier messages, pasted lines stay one message, and
    Alt-Enter begins a new line. Ctrl-C empties the line."""

    def __init__(self, commands: Iterable[str], history: Any = None, **streams: Any) -> None:
        """`history`: of prompt_toolkit; None: of this conversation alone. `streams`: `input` and `output` of prompt_toolkit."""
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.key_binding import KeyBindings

        keys = KeyBindings()

        @keys.add("escape", "enter")
        def _(event: Any) -> None:
            event.current_buffer.insert_text("\n")

        self._session: PromptSession[str] = PromptSession(
            history=history,
            key_bindings=keys,
            completer=WordCompleter(list(commands), sentence=True),
            complete_while_typing=False,
            enable_open_in_editor=False,
            prompt_continuation="  ",
            **streams,
        )

    def __call__(self) -> str:
        """Read one message. Raises EOFError at Ctrl-D on an empty line."""
        while True:
            try:
                return self._session.prompt(PROMPT)
            except KeyboardInterrupt:
                tell(LEAVE)

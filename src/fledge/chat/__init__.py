"""`fledge generate` and `fledge chat`: a model on the terminal, its answer printed as it is generated."""

from fledge.chat.many import generate_file
from fledge.chat.once import generate_once
from fledge.chat.session import chat

__all__ = ["chat", "generate_file", "generate_once"]

"""The command line: `fledge COMMAND …`, also as `python -m fledge.cli`."""

from fledge.cli.arguments import RENAMED_OPTIONS
from fledge.cli.commands import main

__all__ = ["RENAMED_OPTIONS", "main"]

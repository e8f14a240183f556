"""`fledge completion SHELL`, and what the tabulator completes: commands, options, files, runs and keys of the recipe."""

import argparse
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_ARGCOMPLETE"  # the shell sets it where it asks for completions
RUNS = "runs"  # the default folder of runs
WITH_RECIPE = ("train", "data")
OF_A_RUN = ("model", "run")  # arguments that name a run, a stage, or a folder or file
HOW_TO = {
    "bash": 'add this line to ~/.bashrc:  eval "$(fledge completion bash)"',
    "zsh": 'add this line to ~/.zshrc:  eval "$(fledge completion zsh)"',
    "fish": "fledge completion fish > ~/.config/fish/completions/fledge.fish",
}


def add_completion(commands: argparse._SubParsersAction) -> None:
    """Add `fledge completion`."""
    command = commands.add_parser("completion", help="print the script that lets a shell complete fledge", allow_abbrev=False)
    command.add_argument("shell", choices=SHELLS, help="which shell")


def completion_script(shell: str) -> str:
    """The script for a shell, with a comment that says where it belongs."""
    from argcomplete.shell_integration import shellcode

    return f"# {HOW_TO[shell]}\n{shellcode(['fledge'], shell=shell).strip()}"


def complete_if_asked(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks for completions, and end the process; do nothing else where none asks."""
    if VARIABLE not in os.environ:
        return
    import argcomplete

    for command in _commands(parser):
        for action in command._actions:
            if action.dest in OF_A_RUN and not action.option_strings:
                setattr(action, "completer", _complete_run)  # noqa: B010  # argcomplete looks for this attribute
    _add_recipe_options(parser, os.environ.get("COMP_LINE", ""))
    argcomplete.autocomplete(parser, always_complete_options=False)


def _commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _commands(command)


def _complete_run(prefix: str, **_: Any) -> list[str]:
    """Runs, their stages, and the files and folders of the prefix."""
    from argcomplete.completers import FilesCompleter

    runs = [path for path in Path(RUNS).glob("*") if (path / "recipe.yaml").is_file()]
    names = [str(path) for path in runs]
    if prefix.startswith(tuple(f"{name}/" for name in names)):
        names = [str(path.parent) for run in runs for path in run.glob("*/plan.json")]
    return [name for name in names if name.startswith(prefix)] or FilesCompleter()(prefix)


def _recipe_options(prefix: str, recipe: str | None) -> list[str]:
    """The options of the keys of a recipe; a file that cannot be read has no stages of its own."""
    import yaml

    from fledge.recipe.schema_keys import option_names

    tree: Any = None
    if recipe is not None:
        with suppress(OSError, ValueError, yaml.YAMLError):
            tree = yaml.safe_load(Path(recipe).expanduser().read_text(encoding="utf-8"))
    stages = tree.get("stages") if isinstance(tree, dict) else None
    return option_names(prefix, stages if isinstance(stages, dict) else {})


def _add_recipe_options(parser: argparse.ArgumentParser, line: str) -> None:
    """Add the keys of the recipe that begin with the last word of a line, if it is an option of a command with a recipe."""
    words = line.split()
    if len(words) < 3 or words[1] not in WITH_RECIPE or line[-1].isspace() or not words[-1].startswith("--"):
        return
    recipe = next((word for word in words[2:] if word.endswith((".yaml", ".yml"))), None)
    for command in _commands(parser):
        if command.prog.split()[1:] in (words[1:2], words[1:3]):
            known = command._option_string_actions
            for key in _recipe_options(words[-1], recipe):
                if key not in known:
                    command.add_argument(key)

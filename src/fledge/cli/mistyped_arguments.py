"""What was probably meant by a command line that cannot be read: `fledge train r.yaml epochs 3`, `fledge r.yaml`, `—seed 3`."""

import difflib
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

RECIPES = (".yaml", ".yml", ".json")
RECIPE_OPTIONS = ("--config", "--config_file", "--config-file", "--recipe", "--yaml")  # other programs name it by an option
_DASHES = re.compile(r"[—–−－-]+(?=[^\W\d])")  # what editors and input methods make of `--`
_KEY = re.compile(r"[^\W\d][\w.]*")


def check_words(argv: Sequence[str], own: Collection[str]) -> str | None:
    """The problem with a word of `fledge train` or `fledge data` that is neither a file nor an option; None if all are clear.

    `own`: the options of the command; every other one is a key of the recipe.
    """
    for place, word in enumerate(argv):
        before = argv[place - 1] if place else ""
        after = argv[place + 1] if place + 1 < len(argv) else "VALUE"
        if word.startswith("--") or (before.startswith("--") and "=" not in before) or Path(word).exists():
            continue
        if (dashes := _DASHES.match(word)) and word not in own:
            return f"'{word}' is no option\n  → two ordinary dashes begin one: --{word[dashes.end() :]}"
        if problem := _stray_value(argv, place, own):
            return problem
        if argv[0] != "train" or place < 2 or word.lower().endswith(RECIPES):
            continue
        key, equals, value = word.partition("=")
        if _KEY.fullmatch(key):
            return f"'{word}' is no file\n  → a key of the recipe begins with two dashes: --{key} {value if equals else after}"
    return None


def _stray_value(argv: Sequence[str], place: int, own: Collection[str]) -> str | None:
    """The problem with a word that follows a key and its value: the rest of a value with blanks, or the value after `=`."""
    if place < 2 or not argv[place - 2].startswith("--") or "=" in argv[place - 2] or argv[place - 2] in own:
        return None
    key, value, word = argv[place - 2], argv[place - 1], argv[place]
    if value == "=":
        return f"'{word}' stands alone\n  → write {key} {word}, or {key}={word}"
    if word.lower().endswith((".yaml", ".yml")):
        return None  # a recipe that does not exist
    return f"'{word}' stands after {key} {value}\n  → quote a value that holds blanks: {key} '{value} {word}'"


def option_hint(option: str, words: Sequence[str]) -> str | None:
    """The problem with an option that names the recipe, as in other programs; None for other options."""
    if option not in RECIPE_OPTIONS or not words:
        return None
    return f"{option} is no option\n  → a recipe is named without one: fledge train {words[0]}"


def repeated_option(argv: Sequence[str], name_of: Callable[[str], str | None]) -> str | None:
    """The problem with an option that is given twice with two values; None if there is none.

    `name_of(option)`: one name for all spellings of the option; None if it has no value, or may be given several times.
    """
    given: dict[str, str] = {}
    for place, word in enumerate(argv):
        if word == "--":
            break
        option, equals, value = word.partition("=")
        name = name_of(option) if word.startswith("--") else None
        if name is None:
            continue
        value = value if equals else " ".join(argv[place + 1 : place + 2])
        if not value.startswith("--") and (first := given.setdefault(name, value)) != value:
            return f"{option} is given twice: {first} and {value}\n  → leave one of them out"
    return None


def usage_hint(message: str, program: str = "fledge") -> str | None:
    """What to write, for an error of argparse; None where its message is enough. `program`: the command that was called,
    such as `fledge data`."""
    if "required: COMMAND" in message:
        return "`fledge --help` lists the commands; `fledge quickstart` needs nothing else"
    if "unrecognized arguments" in message:
        return "a text of several words stands in quotes; options begin with two dashes"
    found = re.search(r"argument (COMMAND|ACTION): invalid choice: '(.*)' \(choose from (.*)\)", message)
    if found is None:
        return None
    command, word, choices = program, found[2], re.findall(r"[\w-]+", found[3])
    if word in ("help", "-h"):
        return f"`{command} --help` lists what there is"
    if near := difflib.get_close_matches(word.lower(), choices, 1):
        return f"did you mean `{command} {near[0]}`?"
    if command == "fledge" and word.lower().endswith(RECIPES):
        return f"a recipe is trained by `fledge train {word}`"
    if command == "fledge data" and Path(word).exists():
        return f"say what to do with it: `fledge data stats {word}`"
    return f"`{command} --help` lists what there is"

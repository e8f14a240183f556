"""Phrases by which answers are told apart, read from files beside this one that people can read."""

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path


@cache
def phrases(name: str) -> Mapping[str, re.Pattern[str]]:
    """The phrases of a file, by kind, those of all languages together; compiled once.

    A file has a table for each kind, whose keys are languages and whose values are lists of regular expressions, and a table
    `words`: <name> in an expression stands for the words of this name. Case does not count.
    """
    lists = tomllib.loads((Path(__file__).parent / f"{name}.toml").read_text(encoding="utf-8"))
    words = lists.pop("words", {})

    def compiled(languages: Mapping[str, list[str]]) -> re.Pattern[str]:
        joined = "|".join(f"(?:{one})" for expressions in languages.values() for one in expressions)
        return re.compile(re.sub(r"<(\w+)>", lambda found: words[found[1]], joined), re.IGNORECASE)

    return {kind: compiled(languages) for kind, languages in lists.items()}

"""Which language a process speaks."""

import os
from collections.abc import Mapping

LANGUAGES = ("en", "zh")
VARIABLE = "FLEDGE_LANGUAGE"  # what `--language` sets, for this process and those that it starts
_LOCALE_VARIABLES = ("LC_ALL", "LC_MESSAGES", "LANG")  # in the order of POSIX: the first one that is set decides


def choose_language(environment: Mapping[str, str]) -> str:
    """The language that the environment asks for: FLEDGE_LANGUAGE, else the locale; English for every other language."""
    asked = environment.get(VARIABLE) or next((environment[name] for name in _LOCALE_VARIABLES if environment.get(name)), "")
    code = asked.lower().replace("-", "_").split(".")[0].split("_")[0]
    return code if code in LANGUAGES else "en"


def set_language(code: str) -> None:
    """Speak a language from now on, in this process and in those that it starts."""
    os.environ[VARIABLE] = code


def language() -> str:
    """The language of messages: the one that was set, else that of the environment."""
    return choose_language(os.environ)

"""What is answered to a key of another trainer, and the small rules that the tables of them are made of."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What to write in place of a key, as dotted paths and their values; and a sentence beside it.

    A path is that of a stage (`batch.micro_batch_size`) or of the top level (`runtime.precision`).
    """

    settings: tuple[tuple[str, Any], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Context:
    """What stands around a key: it decides what the key means."""

    siblings: Mapping[str, Any] = field(default_factory=dict)  # the keys of the same stage by their plain names
    kind: str | None = None  # of the stage; None: not known
    model_key: str = "model.path"  # where the model to start from is named; empty: the stage before gives it
    max_positions: int | None = None  # model.max_position_embeddings; None: those of a model directory
    model_section: Mapping[str, Any] = field(default_factory=dict)  # the section `model` of the recipe

    def first_value(self, names: tuple[str, ...]) -> Any:
        """The first of these keys that says something, or None."""
        return next((self.siblings[name] for name in names if self.siblings.get(name) is not None), None)

    def number(self, names: tuple[str, ...]) -> float | None:
        """The same as a number."""
        return number(self.first_value(names))

    def integer(self, names: tuple[str, ...]) -> int | None:
        """The same as a whole number."""
        return integer(self.first_value(names))

    def has(self, names: tuple[str, ...]) -> bool:
        """Whether one of these keys says something."""
        return self.first_value(names) is not None


Rule = Callable[[Any, Context], Answer]
Table = dict[str, Rule]


def number(value: Any) -> float | None:
    """A finite number, also where it is written as text; else None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        read = float(value)
    except (ValueError, OverflowError):
        return None
    return read if math.isfinite(read) else None


def integer(value: Any) -> int | None:
    """A whole number; else None."""
    read = number(value)
    return int(read) if read is not None and read == int(read) else None


def boolean(value: Any) -> bool | None:
    """True or false, also as `yes`, `off`, 1 or 0; else None."""
    if isinstance(value, bool):
        return value
    return {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}.get(
        str(value).strip().lower()
    )


def word(value: Any) -> str:
    """A value as one word in small letters: YAML reads `no` as false."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value).strip().lower()


def text_list(value: Any) -> list[str]:
    """A text, texts with commas between them, or a list of texts, as a list."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, list | tuple):
        return [str(part) for part in value if isinstance(part, str | int | float) and str(part).strip()]
    return []


def percent(share: float) -> str | int:
    """0.1 as `10%`."""
    return f"{share * 100:.10g}%" if share else 0


def as_integer(value: Any) -> Any:
    """A number that is whole as such, also where it is written as text; everything else as it is."""
    read = integer(value)
    return read if read is not None else value


def as_number(value: Any) -> Any:
    """A text that is a number as the number; everything else as it is."""
    read = number(value)
    return read if isinstance(value, str) and read is not None else value


def replaced_by(path: str, read: Callable[[Any], Any] = as_number, note: str = "") -> Rule:
    """The key is `path` in fledge."""
    return lambda value, context: Answer(((path, read(value)),), note)


def advice(text: str) -> Rule:
    """fledge has no such key; the sentence says what it does instead, or what to write."""
    answer = Answer(note=text)
    return lambda value, context: answer


def unneeded(why: str) -> Rule:
    """The key is not needed."""
    return advice(f"leave it out; {why}")


def unsupported(what: str) -> Rule:
    """What fledge cannot do, where it is switched on; where it is switched off nothing is lost."""
    off, on = Answer(note="leave it out; it is off"), Answer(note=what)
    return lambda value, context: off if boolean(value) is False or value in ("", "none", "None", 0) else on


def if_true(on: Rule, off: Rule) -> Rule:
    """One rule where the key is true (or anything else than false), another where it is false."""
    return lambda value, context: (off if boolean(value) is False else on)(value, context)


def name_list(text: str) -> tuple[str, ...]:
    """Names with blanks between them."""
    return tuple(text.split())


def for_keys(called: str | tuple[str, ...], rule: Rule) -> Table:
    """One rule for several names of the same thing."""
    return dict.fromkeys(name_list(called) if isinstance(called, str) else called, rule)

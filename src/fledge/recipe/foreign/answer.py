"""An answer to a key of another trainer, and the rules from which the tables of answers are made."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Answer:
    """The answer to a key: settings of fledge that replace it, as dotted paths and values, and a remark.

    A path starts in a stage (`batch.micro_batch_size`) or at the top level (`runtime.precision`).
    """

    settings: tuple[tuple[str, Any], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Context:
    """The other keys of a configuration, which decide the meaning of a key."""

    siblings: Mapping[str, Any] = field(default_factory=dict)  # keys of one stage and of the top level, by plain name
    kind: str | None = None  # of the stage; None: unknown
    model_key: str = "model.path"  # key for the model to start from; empty: the previous stage gives it
    max_positions: int | None = None  # model.max_position_embeddings; None: as the model directory says
    model_section: Mapping[str, Any] = field(default_factory=dict)  # the section `model` of the recipe

    def first_value(self, names: tuple[str, ...]) -> Any:
        """The value of the first of these keys that is present and not null; None without such a key."""
        return next((self.siblings[name] for name in names if self.siblings.get(name) is not None), None)

    def number(self, names: tuple[str, ...]) -> float | None:
        """The first value of these keys, if it is a finite number; else None."""
        return number(self.first_value(names))

    def integer(self, names: tuple[str, ...]) -> int | None:
        """The first value of these keys, if it is a whole number; else None."""
        return integer(self.first_value(names))

    def has(self, names: tuple[str, ...]) -> bool:
        """Whether one of these keys is present and not null."""
        return self.first_value(names) is not None


Rule = Callable[[Any, Context], Answer]
Table = dict[str, Rule]


def number(value: Any) -> float | None:
    """The value as a finite number, also from a text; None for other values."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        parsed = float(value)
    except (ValueError, OverflowError):
        return None
    return parsed if math.isfinite(parsed) else None


def integer(value: Any) -> int | None:
    """The value as a whole number, also from a text or `3.0`; None for other values."""
    parsed = number(value)
    return int(parsed) if parsed is not None and parsed == int(parsed) else None


def boolean(value: Any) -> bool | None:
    """The value as true or false, also from `yes`, `off`, 1 or 0; None for other values."""
    if isinstance(value, bool):
        return value
    return {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}.get(
        str(value).strip().lower()
    )


def word(value: Any) -> str:
    """The value as a text in lower case. True and false become `yes` and `no`, because YAML reads `no` as false."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value).strip().lower()


def text_list(value: Any) -> list[str]:
    """The texts of a list, or of one text with commas between them."""
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    if isinstance(value, list | tuple):
        return [str(item) for item in value if isinstance(item, str | int | float) and str(item).strip()]
    return []


def percent(fraction: float) -> str | int:
    """The fraction as a percentage: `10%` for 0.1, and 0 for 0."""
    return f"{fraction * 100:.10g}%" if fraction else 0


def as_integer(value: Any) -> Any:
    """The value as an int if it is a whole number, also from a text; other values unchanged."""
    parsed = integer(value)
    return parsed if parsed is not None else value


def as_number(value: Any) -> Any:
    """The value as a float if it is a text that holds a number; other values unchanged."""
    parsed = number(value)
    return parsed if isinstance(value, str) and parsed is not None else value


def replaced_by(path: str, convert: Callable[[Any], Any] = as_number, note: str = "") -> Rule:
    """A rule that replaces the key by `path`, with the converted value."""
    return lambda value, context: Answer(((path, convert(value)),), note)


def advice(text: str) -> Rule:
    """A rule that only gives advice, and no settings."""
    answer = Answer(note=text)
    return lambda value, context: answer


def unneeded(why: str) -> Rule:
    """A rule for a key that fledge does not need, for the reason `why`."""
    return advice(f"leave it out; {why}")


def unsupported(limitation: str) -> Rule:
    """A rule for what fledge cannot do: it names the limitation, unless the key switches the feature off."""
    off, on = Answer(note="leave it out; it is off"), Answer(note=limitation)
    return lambda value, context: off if boolean(value) is False or value in ("", "none", "None", 0) else on


def if_true(on: Rule, off: Rule) -> Rule:
    """A rule that applies `on` to every value except false, and `off` to false."""
    return lambda value, context: (off if boolean(value) is False else on)(value, context)


def name_list(text: str) -> tuple[str, ...]:
    """The names in a text, which are separated by blanks."""
    return tuple(text.split())


def for_keys(keys: str | tuple[str, ...], rule: Rule) -> Table:
    """A table with one rule for several keys."""
    return dict.fromkeys(name_list(keys) if isinstance(keys, str) else keys, rule)

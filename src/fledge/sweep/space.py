"""The space of a sweep: keys of the recipe, and the values that each may take.

A parameter is written as `KEY=log:1e-4..1e-2`, `KEY=0.0..0.2`, `KEY=int:2..8`, `KEY=logint:64..512` or `KEY=a,b,c`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from fledge.errors import FledgeError
from fledge.recipe.diff import leaves
from fledge.recipe.schema import Recipe
from fledge.recipe.yaml_dialect import RecipeDumper, RecipeLoader
from fledge.recipe.yaml_source import read_yaml_text

Number = Literal["float", "int"]
RANGES: dict[str, tuple[Number, bool]] = {
    "": ("float", False),
    "log": ("float", True),
    "int": ("int", False),
    "logint": ("int", True),
}
"""The words before a range: the type of its values, and whether equal ratios rather than equal steps are equally likely."""

EXAMPLE = "KEY=log:1e-4..1e-2, KEY=0.0..0.2, KEY=int:2..8, KEY=logint:64..512 or KEY=a,b,c"
OWN_KEYS = ("name", "output", "seed", "built_dataset")  # the sweep sets them itself
FIGURES = 4  # significant figures of a proposed number


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A key of the recipe with the values that it may take: `choices`, or the numbers from `low` to `high`.

    `number`: the type of the numbers; `log`: whether equal ratios are equally likely.
    """

    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    number: Number = "float"
    log: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The parameter as JSON values."""
        values = asdict(self)
        return (
            {"key": self.key, "choices": list(self.choices)}
            if self.choices
            else {k: values[k] for k in values if k != "choices"}
        )

    def corners(self) -> list[Any]:
        """The values that show whether the recipe takes the parameter: all choices, or both ends."""
        return list(self.choices) if self.choices else [self.rounded(self.low), self.rounded(self.high)]

    def rounded(self, value: Any) -> Any:
        """A value as it is written into a recipe: an integer, or a number of four figures inside the range; a choice as it
        is."""
        if self.choices:
            return value
        if self.number == "int":
            return int(value)
        return min(self.high, max(self.low, float(f"{value:.{FIGURES}g}")))

    def holds(self, value: Any) -> bool:
        """Whether the value is one of those that the parameter may take."""
        if self.choices:
            return value in self.choices
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and self.low <= value <= self.high and (self.number == "float" or value == int(value))

    def describe(self) -> str:
        """The parameter as it is written."""
        if self.choices:
            return f"{self.key}={','.join(yaml_text(value) for value in self.choices)}"
        word = next(word for word, meaning in RANGES.items() if meaning == (self.number, self.log))
        return f"{self.key}={word}{':' if word else ''}{self.low:g}..{self.high:g}"


def yaml_text(value: Any) -> str:
    """A value as the text of an override of the recipe."""
    text = yaml.dump(value, Dumper=RecipeDumper, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("...\n").strip()


def parse_parameter(text: str, where: str = "--search") -> Parameter:
    """The parameter of a text `KEY=…`. Raises FledgeError, with `where`, for a text that is none."""
    key, equals, values = text.partition("=")
    key = key.strip().removeprefix("--")
    if not equals or not key or not values.strip():
        raise FledgeError(f"'{text}' names no key with its values", where=where, hint=f"write {EXAMPLE}")
    return _parameter(key, values.strip(), where)


def _parameter(key: str, values: str, where: str) -> Parameter:
    word, colon, span = values.partition(":")
    if ".." in values and (not colon or word in RANGES):
        return _range(key, word if colon else "", span if colon else values, where)
    if colon and ".." in span and "," not in word and "{" not in word and "[" not in word:
        names = ", ".join(name for name in RANGES if name)
        raise FledgeError(
            f"'{word}' is no kind of range", where=f"{where} {key}", hint=f"the kinds are {names}; write {EXAMPLE}"
        )
    try:
        choices = yaml.load(f"[{values}]", RecipeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise FledgeError(f"cannot read the values '{values}'", where=f"{where} {key}", hint=f"write {EXAMPLE}") from None
    return _choices(key, choices, where)


def _choices(key: str, choices: Sequence[Any], where: str) -> Parameter:
    distinct = [value for number, value in enumerate(choices) if value not in choices[:number]]
    if len(distinct) < 2:
        raise FledgeError("there is nothing to search: this is one value", where=f"{where} {key}", hint=f"write {EXAMPLE}")
    return Parameter(key=key, choices=tuple(distinct))


def _range(key: str, word: str, span: str, where: str) -> Parameter:
    number, log = RANGES[word]
    ends = span.split("..")
    try:
        low, high = (float(end) for end in ends)
    except ValueError:
        raise FledgeError(f"'{span}' is no range of numbers", where=f"{where} {key}", hint=f"write {EXAMPLE}") from None
    problem = None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        problem = f"the range {low:g}..{high:g} must rise from its first number to its last"
    elif log and low <= 0:
        problem = f"a logarithmic range lies above zero, and this one begins at {low:g}"
    elif number == "int" and (low != int(low) or high != int(high)):
        problem = f"the range {low:g}..{high:g} is of whole numbers"
    if problem is not None:
        raise FledgeError(problem, where=f"{where} {key}", hint=f"write {EXAMPLE}")
    return Parameter(key=key, low=low, high=high, number=number, log=log)


def read_space(file: Path) -> list[Parameter]:
    """The parameters of a YAML file: keys with `log:1e-4..1e-2` and the like, or with a list of choices."""
    where = str(file)
    text = read_yaml_text(where, "space")
    try:
        tree = yaml.load(text, RecipeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise FledgeError("this is no YAML", where=where, hint=f"each line is KEY: VALUES, such as {EXAMPLE}") from None
    if not isinstance(tree, Mapping) or not tree:
        raise FledgeError(
            "a space is a mapping of keys", where=where, hint="stages.sft.optimizer.learning_rate: log:1e-4..1e-2"
        )
    parameters = []
    for key, values in leaves(dict(tree)):
        parameters.append(_choices(key, values, where) if isinstance(values, list) else _parameter(key, str(values), where))
    return parameters


def gather_space(texts: Iterable[str], files: Iterable[Path]) -> tuple[Parameter, ...]:
    """The parameters of `--search` options and of files. Raises FledgeError if there is none, if a key comes twice, or if the
    sweep sets the key itself."""
    found = [one for file in files for one in read_space(file)] + [parse_parameter(text) for text in texts]
    if not found:
        raise FledgeError("nothing is searched", where="--search", hint=f"write --search {EXAMPLE}")
    keys = [one.key for one in found]
    for key in keys:
        if keys.count(key) > 1:
            raise FledgeError(f"the key '{key}' is searched twice", where="--search", hint="leave one of them out")
        if key in OWN_KEYS:
            hint = "write --seeds N" if key == "seed" else "leave it out"
            raise FledgeError(f"a sweep sets the key '{key}' itself", where="--search", hint=hint)
    return tuple(found)


def as_overrides(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Values of keys as overrides of a recipe."""
    return [(key, yaml_text(value)) for key, value in values.items()]


def own_values(recipe: Recipe, space: Sequence[Parameter]) -> dict[str, Any] | None:
    """The values that the recipe itself has for the searched keys; None if one of them lies outside of the space."""
    found = dict(leaves(recipe.model_dump(mode="json")))
    values = {one.key: found.get(one.key) for one in space}
    return values if all(one.holds(values[one.key]) for one in space) else None

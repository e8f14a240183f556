"""How answers are written: snippets of YAML on one line, and lines that tell of several keys at once."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from fledge.recipe.foreign.answer import Answer
from fledge.recipe.schema_keys import Key, is_stage_path, nested
from fledge.recipe.yaml_dialect import RecipeDumper

WIDEST = 60  # characters of a value in a line


class SnippetDumper(RecipeDumper):
    """Writes numbers as people do: 1e-05, and not 1.0e-05."""

    def ignore_aliases(self, data: Any) -> bool:
        """A value that appears twice is written twice."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """A text of several lines stays on one."""
    style = '"' if any(mark in text for mark in "\n\r\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    special = {float("inf"): ".inf", float("-inf"): "-.inf"}
    text = ".nan" if value != value else special.get(value) or repr(value)
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


SnippetDumper.add_representer(str, _text)
SnippetDumper.add_representer(float, _float)
SnippetDumper.add_representer(bytes, lambda dumper, value: dumper.represent_str(repr(value)))
SnippetDumper.add_representer(tuple, lambda dumper, value: dumper.represent_list(value))
SnippetDumper.add_multi_representer(object, lambda dumper, value: dumper.represent_str(str(value)))


def inline_yaml(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.dump(
        value, Dumper=SnippetDumper, default_flow_style=True, allow_unicode=True, width=float("inf"), sort_keys=False
    ).rstrip("\n")
    return text.removesuffix("\n...")


def shown_key(key: Key, value: Any) -> str:
    """A key and its value as they were written, not longer than a line can hold."""
    text = inline_yaml(value)
    text = text if len(text) <= WIDEST else f"{text[: WIDEST - 1]}…"
    return f"{'.'.join(map(str, key))}: {text}"


def snippet(writes: Iterable[tuple[str, Any]]) -> str:
    """What is to be written: `batch: {micro_batch_size: 4}`."""
    return " and ".join(f"{name}: {inline_yaml(value)}" for name, value in nested(list(writes)).items())


def as_flags(writes: Iterable[tuple[str, Any]], stage: str) -> str:
    """The same on the command line: `--stages.sft.batch.micro_batch_size 4`."""
    flags = []
    for path, value in writes:
        text = inline_yaml(value)
        quoted = f"'{text}'" if set(text) & set(" {}[]'\"*?$&|;<>()#") else text
        flags.append(f"--{f'stages.{stage}.' if is_stage_path(path) else ''}{path} {quoted}")
    return " ".join(flags)


@dataclass(frozen=True)
class AnsweredKey:
    """What is said of one key: where it stands, how it was written, and the answer; and the keys that take its place.

    Nothing is said of a section whose keys are answered one by one.
    """

    key: Key
    location: str
    written: str
    text: str
    provides: tuple[Key, ...] = ()


def answer_lines(told: Sequence[AnsweredKey]) -> list[str]:
    """One line for each answer: keys of one section with the same answer share it."""
    groups: dict[tuple[Key, str], list[AnsweredKey]] = {}
    for item in told:
        if item.text:
            groups.setdefault((item.key[:-1], item.text), []).append(item)
    return [_line(group) for group in groups.values()]


def _line(group: list[AnsweredKey]) -> str:
    places = ", ".join(dict.fromkeys(item.location for item in group))
    return f"{places}: {', '.join(item.written for item in group)}{group[0].text}"


def answer_text(answer: Answer, where: Callable[[str], str] = lambda path: "", flags_of: str | None = None) -> str:
    """An answer in words. `where` says of a path where it is written; `flags_of` is the stage of an answer for the command
    line."""
    if not answer.settings:
        return answer.note
    if flags_of is not None:
        write = as_flags(answer.settings, flags_of)
    else:
        parts = [[pair for pair in answer.settings if is_stage_path(pair[0]) is inner] for inner in (True, False)]
        write = " and ".join(f"{snippet(part)}{where(part[0][0])}" for part in parts if part)
    return f"write {write}" + (f"; {answer.note}" if answer.note else "")

"""Answers as text: snippets of YAML on one line, and one line for several keys with equal answers."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from fledge.recipe.foreign.answer import Answer
from fledge.recipe.schema_keys import Key, is_stage_path, nested
from fledge.recipe.yaml_dialect import RecipeDumper

WIDEST = 60  # characters of a value in an answer, at most


class SnippetDumper(RecipeDumper):
    """PyYAML dumper for snippets; it writes 1e-05 and not 1.0e-05."""

    def ignore_aliases(self, data: Any) -> bool:
        """True: a value that appears twice is written twice, without a YAML alias."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """The node of a text; line breaks are escaped, so that it takes one line."""
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
    """The YAML of a value on one line."""
    text = yaml.dump(
        value, Dumper=SnippetDumper, default_flow_style=True, allow_unicode=True, width=float("inf"), sort_keys=False
    ).rstrip("\n")
    return text.removesuffix("\n...")


def shown_key(key: Key, value: Any) -> str:
    """The key and its value as the user wrote them; a long value is cut."""
    text = inline_yaml(value)
    text = text if len(text) <= WIDEST else f"{text[: WIDEST - 1]}…"
    return f"{'.'.join(map(str, key))}: {text}"


def snippet(settings: Iterable[tuple[str, Any]]) -> str:
    """The settings as YAML on one line: `batch: {micro_batch_size: 4}`."""
    return " and ".join(f"{name}: {inline_yaml(value)}" for name, value in nested(list(settings)).items())


def as_flags(settings: Iterable[tuple[str, Any]], stage: str) -> str:
    """The settings as flags of the command line: `--stages.sft.batch.micro_batch_size 4`."""
    flags = []
    for path, value in settings:
        text = inline_yaml(value)
        quoted = f"'{text}'" if set(text) & set(" {}[]'\"*?$&|;<>()#") else text
        flags.append(f"--{f'stages.{stage}.' if is_stage_path(path) else ''}{path} {quoted}")
    return " ".join(flags)


@dataclass(frozen=True)
class AnsweredKey:
    """A key with its location, its spelling by the user, the text of the answer, and the keys that the answer provides.

    The text is empty for a section whose keys are answered one by one.
    """

    key: Key
    location: str
    written: str
    text: str
    provides: tuple[Key, ...] = ()


def answer_lines(answers: Sequence[AnsweredKey]) -> list[str]:
    """One line for each answer; keys of one section with equal answers share a line."""
    groups: dict[tuple[Key, str], list[AnsweredKey]] = {}
    for item in answers:
        if item.text:
            groups.setdefault((item.key[:-1], item.text), []).append(item)
    return [_line(group) for group in groups.values()]


def _line(group: list[AnsweredKey]) -> str:
    locations = ", ".join(dict.fromkeys(item.location for item in group))
    return f"{locations}: {', '.join(item.written for item in group)}{group[0].text}"


def answer_text(answer: Answer, section_of: Callable[[str], str] = lambda path: "", stage_of_flags: str | None = None) -> str:
    """The answer in words.

    `section_of` gives the section of a path in words. `stage_of_flags` is the stage of a key that was a flag of the command
    line; the answer is then written as flags.
    """
    if not answer.settings:
        return answer.note
    if stage_of_flags is not None:
        replacement = as_flags(answer.settings, stage_of_flags)
    else:
        groups = [[pair for pair in answer.settings if is_stage_path(pair[0]) is in_stage] for in_stage in (True, False)]
        replacement = " and ".join(f"{snippet(group)}{section_of(group[0][0])}" for group in groups if group)
    return f"write {replacement}" + (f"; {answer.note}" if answer.note else "")

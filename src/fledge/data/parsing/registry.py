"""Entries of a dataset_info.json, as LLaMA-Factory describes data sets in it, made sources of their own.

What an entry may hold: https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md
"""

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from fledge.errors import FledgeError
from fledge.recipe.schema import Source

FILE_NAME = "dataset_info.json"
PLACES = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "file_name")  # the first one counts
OPTIONS = ("subset", "split", "folder", "revision")
KEYS = (*PLACES, *OPTIONS, "file_sha1", "formatting", "ranking", "columns", "tags", "num_samples")  # file_sha1: no effect
FORMATS = ("alpaca", "sharegpt", "openai")

ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
SHAREGPT = {"messages": "conversations"}
MEDIA = ("images", "videos", "audios")
COLUMNS = (*ALPACA, *SHAREGPT, "history", "system", "tools", *MEDIA, "chosen", "rejected", "kto_tag")
TAGS = {
    "role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt",
    "observation_tag": "observation", "function_tag": "function_call", "system_tag": "system",
}  # fmt: skip
ROLES = {
    "user_tag": "user", "assistant_tag": "assistant", "observation_tag": "tool", "function_tag": "call",
    "system_tag": "system",
}  # fmt: skip


def resolve(source: Source, key: str) -> list[Source]:
    """The sources that a source means: itself, or the named entries of its registry, in that order.

    What the recipe says of the source (columns, mixing, first_rows, …) is laid over what the entry says; its `num_samples` is
    `max_rows`, unless the recipe says how much to take. Raises FledgeError with the recipe key, the file and the entry for
    what is not there, not understood or out of reach.
    """
    if source.registry is None:
        return [source]
    file = Path(os.path.expanduser(source.registry))
    file = file / FILE_NAME if file.is_dir() else file
    entries = _read(file, key)
    names = _names(source.name or "", entries)
    if source.token_fraction is not None and len(names) > 1:
        raise FledgeError(
            f"share {source.token_fraction:g} is given to {len(names)} data sets together",
            where=key,
            hint="name each of them in a source of its own, with its own share",
        )
    return [Entry(file, name, entries, key).source(source) for name in names]


def _read(file: Path, key: str) -> dict[str, Any]:
    try:
        entries = orjson.loads(file.read_bytes())
    except FileNotFoundError:
        raise FledgeError(f"there is no registry '{file}'", where=key, hint=f"looked in {Path.cwd()}") from None
    except orjson.JSONDecodeError as error:
        raise FledgeError(f"the registry '{file}' is not valid JSON: {error}", where=key) from None
    except (OSError, ValueError) as error:
        raise FledgeError(f"cannot read the registry '{file}': {error}", where=key) from None
    if not isinstance(entries, dict):
        raise FledgeError(f"the registry '{file}' is not a JSON object of entries", where=key)
    return entries


def _names(given: str, entries: Mapping[str, Any]) -> list[str]:
    """`a,b` names two entries, unless that is an entry's name."""
    return [given] if given in entries else [name.strip() for name in given.split(",")]


def _near(name: str, known: Iterable[str]) -> str | None:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean '{near[0]}'?" if near else None


class Entry:
    """One entry of a registry, checked key by key."""

    def __init__(self, file: Path, name: str, entries: Mapping[str, Any], key: str) -> None:
        self.file, self.name, self.key = file, name, key
        if name not in entries:
            hint = _near(name, entries) or f"it has {len(entries)} entries, the first: {', '.join(list(entries)[:5])}"
            raise FledgeError(f"the registry '{file}' has no entry '{name}'", where=key, hint=hint)
        self.values = self._object(entries[name], "it", KEYS)
        self.columns = self._texts("columns", COLUMNS)
        self.tags = self._texts("tags", tuple(TAGS))
        self.format = self._text("formatting") or FORMATS[0]
        self.ranking = self.values.get("ranking") or False
        if self.format not in FORMATS:
            raise self.refusal(f"formatting is '{self.format}'", f"it is one of {', '.join(FORMATS)}")
        if not isinstance(self.ranking, bool):
            raise self.refusal("ranking is neither true nor false")
        if media := [name for name in MEDIA if (self.columns or {}).get(name)]:
            raise self.refusal(f"it has {media[0]}; fledge trains on text alone")

    def refusal(self, what: str, hint: str | None = None) -> FledgeError:
        """What is wrong with this entry."""
        return FledgeError(f"entry '{self.name}' of '{self.file}': {what}", where=self.key, hint=hint)

    def source(self, asked: Source) -> Source:
        """The source that the entry describes, under what the recipe asks."""
        values = {
            **self._place(),
            **asked.model_dump(exclude_defaults=True, exclude={"registry"}),
            "name": self.name,
            "columns": {**self._columns(), **asked.columns},
            "turns": {**self._turns(), **asked.turns},
            "roles": {**self._roles(), **asked.roles},
        }
        samples = self._samples()
        if samples and not any((asked.token_fraction, asked.ratio, asked.max_rows, asked.max_tokens)):
            values["max_rows"] = samples
        return Source.model_validate(values)

    # -- where it is ----------------------------------------------------------------------------------------------------

    def _place(self) -> dict[str, str]:
        """`hub` with subset and split, or `path`."""
        named = {place: text for place in PLACES if (text := self._text(place))}
        options = {option: text for option in OPTIONS if (text := self._text(option))}
        place = next(iter(named), None)
        if place == "hf_hub_url":
            said = {"hub": named[place], **{name: options.pop(name) for name in ("subset", "split") if name in options}}
        elif place == "file_name":
            said = {"path": str(self.file.parent / os.path.expanduser(named[place]))}
            if options.get("split") == "train":  # all of a file
                del options["split"]
        else:
            what = f"fledge does not read {place}" if place else "it names neither file_name nor hf_hub_url"
            raise self.refusal(what, "download the data set and name the file by file_name")
        for option, text in options.items():
            raise self.refusal(f"fledge cannot read {option} '{text}' of {place}", "download it and name the file by file_name")
        return said

    def _samples(self) -> int | None:
        samples = self.values.get("num_samples")
        if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int) or samples < 1):
            raise self.refusal("num_samples is not a whole number above 0")
        return samples

    # -- what its rows are ----------------------------------------------------------------------------------------------

    def _columns(self) -> dict[str, str | list[str]]:
        """Columns by role. Where an entry names columns, a role that it leaves out has none: ''."""
        alpaca = self.format == "alpaca"
        given = self.columns if self.columns is not None else ALPACA if alpaca else SHAREGPT
        main = "prompt" if alpaca else "messages"
        if not given.get(main):
            raise self.refusal(f"its columns name no {main}")
        found: dict[str, str | list[str]] = {main: given[main]}
        for role in ("system", "tools", *(("history",) if alpaca else ())):
            if given.get(role) != role:  # a column with the usual name is recognised, and may be missing in a row
                found[role] = given.get(role, "")
        found |= {side: given[side] for side in ("chosen", "rejected") if given.get(side)}
        found |= {"label": given.get("kto_tag", ""), "response": given.get("response", "") if alpaca else ""}
        return {**found, **self._alpaca(given)} if alpaca else found

    def _alpaca(self, given: Mapping[str, str]) -> dict[str, str | list[str]]:
        """A document is what a question would be. Of a ranking without `chosen`, the response holds both answers."""
        prompt, query = given["prompt"], given.get("query", "")
        found: dict[str, str | list[str]] = {"text": [prompt, query] if query else prompt}
        if (prompt, query) != (ALPACA["prompt"], ALPACA["query"]):
            found["query"] = query
        if self.ranking and not given.get("chosen") and given.get("response"):
            found |= {"ranked": given["response"], "response": ""}
        return found

    def _turns(self) -> dict[str, str]:
        tags = self._given_tags()
        return {part: tags[tag] for part, tag in (("role", "role_tag"), ("content", "content_tag")) if tags.get(tag)}

    def _roles(self) -> dict[str, str]:
        tags = self._given_tags()
        return {tags[tag]: role for tag, role in ROLES.items() if tags.get(tag)}

    def _given_tags(self) -> Mapping[str, str]:
        """Tags as given. `openai` without tags is recognised by its usual names."""
        if self.format == "alpaca" or (self.format == "openai" and self.tags is None):
            return {}
        return TAGS if self.tags is None else self.tags

    # -- types ----------------------------------------------------------------------------------------------------------

    def _object(self, value: Any, what: str, known: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.refusal(f"{what} is {type(value).__name__}, not a JSON object")
        if unknown := next((name for name in value if name not in known), None):
            raise self.refusal(f"{what} has an unknown key '{unknown}'", _near(unknown, known) or f"known: {', '.join(known)}")
        return value

    def _text(self, name: str) -> str | None:
        value = self.values.get(name)
        if value is not None and (not isinstance(value, str) or "\0" in value):
            raise self.refusal(f"{name} is not text")
        return value

    def _texts(self, name: str, known: tuple[str, ...]) -> dict[str, str] | None:
        """An object of texts, nulls left out; None where it is not given."""
        value = self.values.get(name)
        if value is None:
            return None
        found = {key: text for key, text in self._object(value, name, known).items() if text is not None}
        if wrong := next((key for key, text in found.items() if not isinstance(text, str)), None):
            raise self.refusal(f"{name}.{wrong} is not text")
        return found

"""Entries of a dataset_info.json, in which LLaMA-Factory describes data sets, converted to sources.

Reference: https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md
"""

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from fledge.errors import FledgeError
from fledge.recipe.schema import Source
from fledge.run.input_files import check_input_file, lookup_hint

FILE_NAME = "dataset_info.json"
# The location of an entry; the first key that is set counts.
LOCATION_KEYS = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "file_name")
OPTIONS = ("subset", "split", "folder", "revision")
# All keys of an entry; file_sha1 has no effect.
KEYS = (*LOCATION_KEYS, *OPTIONS, "file_sha1", "formatting", "ranking", "columns", "tags", "num_samples")
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
    """The sources that a source denotes: itself, or the named entries of its registry, in that order.

    Keys that the recipe sets for the source (columns, mixing, max_samples, …) override the entry. The entry's `num_samples`
    becomes `max_rows`, unless the recipe sets how much to use. Raises FledgeError with recipe key, file and entry if something
    is missing, unknown or unsupported.
    """
    if source.registry is None:
        return [source]
    file = Path(os.path.expanduser(source.registry))
    file = file / FILE_NAME if file.is_dir() else file
    entries = _read(file, key)
    names = _names(source.name or "", entries)
    if source.token_fraction is not None and len(names) > 1:
        raise FledgeError(
            f"token_fraction {source.token_fraction:g} is given to {len(names)} data sets together",
            where=key,
            hint="name each data set in a source of its own, with a token_fraction of its own",
        )
    return [Entry(file, name, entries, key).source(source) for name in names]


def _read(file: Path, key: str) -> dict[str, Any]:
    try:
        if not file.exists():
            raise FledgeError(f"there is no registry '{file}'", where=key, hint=lookup_hint(file))
        check_input_file(file, key)
        entries = orjson.loads(file.read_bytes())
    except orjson.JSONDecodeError as error:
        raise FledgeError(f"the registry '{file}' is not valid JSON: {error}", where=key) from None
    except (OSError, ValueError) as error:
        raise FledgeError(f"cannot read the registry '{file}': {error}", where=key) from None
    if not isinstance(entries, dict):
        raise FledgeError(f"the registry '{file}' is not a JSON object of entries", where=key)
    return entries


def _names(text: str, entries: Mapping[str, Any]) -> list[str]:
    """The entry names in `a,b`, which may also be the name of one entry."""
    return [text] if text in entries else [name.strip() for name in text.split(",")]


def _suggestion(name: str, known: Iterable[str]) -> str | None:
    matches = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean '{matches[0]}'?" if matches else None


class Entry:
    """One entry of a registry; every key is checked."""

    def __init__(self, file: Path, name: str, entries: Mapping[str, Any], key: str) -> None:
        self.file, self.name, self.key = file, name, key
        if name not in entries:
            hint = _suggestion(name, entries) or f"it has {len(entries)} entries, the first: {', '.join(list(entries)[:5])}"
            raise FledgeError(f"the registry '{file}' has no entry '{name}'", where=key, hint=hint)
        self.values = self._object(entries[name], "it", KEYS)
        self.columns = self._texts("columns", COLUMNS)
        self.tags = self._texts("tags", tuple(TAGS))
        self.format = self._text("formatting") or FORMATS[0]
        self.ranking = self.values.get("ranking") or False
        if self.format not in FORMATS:
            raise self.error(f"formatting is '{self.format}'", f"it is one of {', '.join(FORMATS)}")
        if not isinstance(self.ranking, bool):
            raise self.error("ranking is neither true nor false")
        if media := [name for name in MEDIA if (self.columns or {}).get(name)]:
            raise self.error(f"it has {media[0]}; fledge trains on text only")

    def error(self, what: str, hint: str | None = None) -> FledgeError:
        """A FledgeError about this entry."""
        return FledgeError(f"entry '{self.name}' of '{self.file}': {what}", where=self.key, hint=hint)

    def source(self, recipe_source: Source) -> Source:
        """The source that the entry describes, overridden by the recipe's source."""
        values = {
            **self._location(),
            **recipe_source.model_dump(exclude_defaults=True, exclude={"registry"}),
            "name": self.name,
            "columns": {**self._columns(), **recipe_source.columns},
            "turns": {**self._turns(), **recipe_source.turns},
            "roles": {**self._roles(), **recipe_source.roles},
        }
        samples = self._samples()
        if samples and not any(
            (recipe_source.token_fraction, recipe_source.ratio, recipe_source.max_rows, recipe_source.max_tokens)
        ):
            values["max_rows"] = samples
        return Source.model_validate(values)

    # -- location -------------------------------------------------------------------------------------------------------

    def _location(self) -> dict[str, str]:
        """`hub` with subset and split, or `path`, as keys of a source."""
        named = {location_key: text for location_key in LOCATION_KEYS if (text := self._text(location_key))}
        options = {option: text for option in OPTIONS if (text := self._text(option))}
        location_key = next(iter(named), None)
        if location_key == "hf_hub_url":
            location = {
                "hub": named[location_key],
                **{name: options.pop(name) for name in ("subset", "split") if name in options},
            }
        elif location_key == "file_name":
            location = {"path": str(self.file.parent / os.path.expanduser(named[location_key]))}
            if options.get("split") == "train":  # the whole file
                del options["split"]
        else:
            what = f"fledge does not support {location_key}" if location_key else "it has neither file_name nor hf_hub_url"
            raise self.error(what, "download the data set and set file_name")
        for option, text in options.items():
            raise self.error(
                f"fledge does not support {option} '{text}' with {location_key}", "download the data set and set file_name"
            )
        return location

    def _samples(self) -> int | None:
        samples = self.values.get("num_samples")
        if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int) or samples < 1):
            raise self.error("num_samples is not a whole number above 0")
        return samples

    # -- schema of the rows ---------------------------------------------------------------------------------------------

    def _columns(self) -> dict[str, str | list[str]]:
        """Columns by role. If an entry names columns, a role that it leaves out has no column: ''."""
        alpaca = self.format == "alpaca"
        columns = self.columns if self.columns is not None else ALPACA if alpaca else SHAREGPT
        required = "prompt" if alpaca else "messages"
        if not columns.get(required):
            raise self.error(f"its columns do not name {required}")
        roles: dict[str, str | list[str]] = {required: columns[required]}
        for role in ("system", "tools", *(("history",) if alpaca else ())):
            if columns.get(role) != role:  # a column with the usual name is found anyway, and may be missing in a row
                roles[role] = columns.get(role, "")
        roles |= {side: columns[side] for side in ("chosen", "rejected") if columns.get(side)}
        roles |= {"label": columns.get("kto_tag", ""), "response": columns.get("response", "") if alpaca else ""}
        return {**roles, **self._alpaca(columns)} if alpaca else roles

    def _alpaca(self, columns: Mapping[str, str]) -> dict[str, str | list[str]]:
        """Columns that alpaca entries have in addition. For documents the text is the prompt; in a ranking without `chosen`,
        the response column holds both answers."""
        prompt, query = columns["prompt"], columns.get("query", "")
        roles: dict[str, str | list[str]] = {"text": [prompt, query] if query else prompt}
        if (prompt, query) != (ALPACA["prompt"], ALPACA["query"]):
            roles["query"] = query
        if self.ranking and not columns.get("chosen") and columns.get("response"):
            roles |= {"ranked": columns["response"], "response": ""}
        return roles

    def _turns(self) -> dict[str, str]:
        tags = self._effective_tags()
        return {field: tags[tag] for field, tag in (("role", "role_tag"), ("content", "content_tag")) if tags.get(tag)}

    def _roles(self) -> dict[str, str]:
        tags = self._effective_tags()
        return {tags[tag]: role for tag, role in ROLES.items() if tags.get(tag)}

    def _effective_tags(self) -> Mapping[str, str]:
        """The tags of the entry. `openai` without tags is recognized by its usual names."""
        if self.format == "alpaca" or (self.format == "openai" and self.tags is None):
            return {}
        return TAGS if self.tags is None else self.tags

    # -- types ----------------------------------------------------------------------------------------------------------

    def _object(self, value: Any, what: str, known: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.error(f"{what} is {type(value).__name__}, not a JSON object")
        if unknown := next((name for name in value if name not in known), None):
            raise self.error(
                f"{what} has an unknown key '{unknown}'", _suggestion(unknown, known) or f"known: {', '.join(known)}"
            )
        return value

    def _text(self, name: str) -> str | None:
        value = self.values.get(name)
        if value is not None and (not isinstance(value, str) or "\0" in value):
            raise self.error(f"{name} is not text")
        return value

    def _texts(self, name: str, known: tuple[str, ...]) -> dict[str, str] | None:
        """An object of texts without null values; None if it is not set."""
        value = self.values.get(name)
        if value is None:
            return None
        texts = {key: text for key, text in self._object(value, name, known).items() if text is not None}
        if wrong := next((key for key, text in texts.items() if not isinstance(text, str)), None):
            raise self.error(f"{name}.{wrong} is not text")
        return texts

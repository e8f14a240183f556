"""Models of the Hugging Face hub, `hub:owner/name` or `hub:owner/name@revision`: the only models that are downloaded.

Only configuration, tokenizer and safetensors of the repository's first level are fetched, from one commit, into the cache of
huggingface_hub. What is there already is used without the network.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from fledge.errors import FledgeError, first_line
from fledge.run.console import Log
from fledge.run.text_files import write_text

PREFIX = "hub:"
NAME = re.compile(r"hub:(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w][\w./-]*))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
OTHER_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json",
    "merges.txt", "added_tokens.json", "chat_template.jinja", "README.md", INDEX,
)  # fmt: skip
SHARDS = "model-*-of-*.safetensors"


@dataclass(frozen=True)
class HubModel:
    """A model of the hub: owner/name, and a branch, tag or commit (None: the main branch)."""

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{PREFIX}{self.name}" + (f"@{self.revision}" if self.revision else "")


def is_hub_name(text: str) -> bool:
    """Whether a text names a model of the hub."""
    return text.startswith(PREFIX)


def parse_hub_name(text: str, revision: str | None = None) -> HubModel:
    """The model that `hub:owner/name@revision` names. Raises FledgeError for another form, and for two revisions."""
    found = NAME.fullmatch(text)
    if found is None:
        raise FledgeError("a model of the hub is written hub:owner/name or hub:owner/name@revision", where=text)
    if found["revision"] and revision:
        raise FledgeError("the revision is written twice", where=text, hint="write it once: after @, or as model.revision")
    return HubModel(found["name"], found["revision"] or revision)


@dataclass(frozen=True)
class HubCopy:
    """A directory of the local cache, and the commit that its files are of."""

    folder: Path
    commit: str


def hub_copy(model: HubModel, commit: str | None = None, log: Log = lambda text: None) -> HubCopy:
    """The files of a model in the local cache, downloaded if they are not there.

    `commit`: the commit to take whatever the revision means now. `log` receives sizes before anything is downloaded. Raises
    FledgeError, in words, without the network and a local copy, for a name or revision that does not exist, for a model that
    asks for permission, for one without safetensors, and where the disk is too small.
    """
    known = commit or (model.revision if model.revision and COMMIT.fullmatch(model.revision) else None)
    if known is not None and (copy := _local(model, known)) is not None:
        return copy
    try:
        info = _info(model, known)
    except _Unreachable as problem:
        copy = _local(model, known or model.revision or "main")
        if copy is None:
            raise FledgeError(
                f"the hub cannot be reached ({problem}), and there is no whole copy of this model in the local cache",
                where=str(model),
                hint="connect to the network once; or copy the model's folder here and name that",
            ) from None
        log(f"{model}: the hub cannot be reached; the local copy of commit {copy.commit[:12]} is used")
        return copy
    files = _wanted_files(model, info)
    return _download(model, str(info.sha), files, log)


class _Unreachable(Exception):
    """The hub does not answer."""


def _settings() -> dict[str, Any]:
    """Where the hub and its cache are, as the environment says now; the library reads it only when it is imported."""
    home, cache = os.environ.get("HF_HOME"), os.environ.get("HF_HUB_CACHE")
    folder = Path(cache) if cache else Path(home) / "hub" if home else None
    return {"endpoint": os.environ.get("HF_ENDPOINT") or None, "cache_dir": folder}


@contextmanager
def _errors_in_words(model: HubModel) -> Iterator[None]:
    """Errors of the library as FledgeError, and those of the network as `_Unreachable`."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        hint = "ask for access on its page, then run `hf auth login`"
        raise FledgeError("this model asks for permission", where=str(model), hint=hint) from None
    except errors.RepositoryNotFoundError:
        hint = "check the name; a private model needs `hf auth login`"
        raise FledgeError("the hub has no such model, or hides it", where=str(model), hint=hint) from None
    except errors.RevisionNotFoundError:
        what = f"this model has no revision '{model.revision}'"
        raise FledgeError(what, where=str(model), hint="write a branch, a tag or a commit of its page") from None
    except errors.HfHubHTTPError as error:
        raise _Unreachable(first_line(error)) from None
    except (errors.OfflineModeIsEnabled, OSError) as error:
        raise _Unreachable(first_line(error)) from None
    except Exception as error:  # of the library's HTTP client, which changes between versions
        raise _Unreachable(first_line(error)) from None


def _local(model: HubModel, revision: str) -> HubCopy | None:
    """The whole copy of a revision in the local cache; None if there is none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    from fledge.model.weight_files import read_headers

    try:
        config = hf_hub_download(
            model.name, "config.json", revision=revision, cache_dir=_settings()["cache_dir"], local_files_only=True
        )
        folder = Path(config).parent
        read_headers(folder)
    except (EntryNotFoundError, FledgeError, ValueError):
        return None
    return HubCopy(folder, folder.name)


def _info(model: HubModel, commit: str | None) -> Any:
    from huggingface_hub import HfApi

    with _errors_in_words(model if commit is None else replace(model, revision=commit)):
        return HfApi(endpoint=_settings()["endpoint"]).model_info(
            model.name, revision=commit or model.revision, files_metadata=True
        )


def _wanted_files(model: HubModel, info: Any) -> dict[str, int]:
    """The files to fetch with their sizes. Raises FledgeError for a repository without safetensors."""
    sizes = {each.rfilename: int(each.size or 0) for each in info.siblings or ()}
    shards = [name for name in sizes if fnmatch(name, SHARDS)] if INDEX in sizes else [name for name in sizes if name == SINGLE]
    if not shards:
        pickled = next((name for name in sizes if name.endswith((".bin", ".pt", ".pth", ".ckpt"))), None)
        gguf = next((name for name in sizes if name.endswith(".gguf")), None)
        if gguf is not None:
            hint = f"download one of them, and name the file: `hf download {model.name} {gguf} --local-dir .`"
            raise FledgeError("this model has GGUF files and no safetensors", where=str(model), hint=hint)
        what = f"only {pickled}, a pickle, which can run code" if pickled else "no weights in safetensors"
        hint = "look for a version of it with safetensors, or convert a copy that you trust with transformers"
        raise FledgeError(f"this model has {what}", where=str(model), hint=hint)
    return {name: size for name, size in sizes.items() if name in shards or name in OTHER_FILES}


def _download(model: HubModel, commit: str, files: dict[str, int], log: Log) -> HubCopy:
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    settings = _settings()
    cache = settings["cache_dir"] or Path(constants.HF_HUB_CACHE)
    missing = {
        name: size
        for name, size in files.items()
        if not isinstance(try_to_load_from_cache(model.name, name, cache_dir=cache, revision=commit), str)
    }
    if missing:
        total, left = sum(files.values()), sum(missing.values())
        log(f"{model}: downloading {left / 1e6:,.0f} of {total / 1e6:,.0f} MB of commit {commit[:12]} into {cache}")
        Path(cache).mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache).free
        if left > free:
            what = f"{left:,} bytes are to be downloaded, and {free:,} are free in {cache}"
            raise FledgeError(what, where=str(model), hint="free space there, or set HF_HOME to a folder elsewhere")
    path = Path()
    for name in sorted(files, key=lambda one: one.endswith(".safetensors")):  # last: a copy with its weights is whole
        try:
            with _errors_in_words(model):
                path = Path(hf_hub_download(model.name, name, revision=commit, **settings))
        except _Unreachable as problem:
            raise FledgeError(
                f"downloading {name} failed: {problem}",
                where=str(model),
                hint="run the same command again: what is there is kept",
            ) from None
    reference = path.parent.parent.parent / "refs" / (model.revision or "main")  # what the revision means, for when offline
    if not COMMIT.fullmatch(reference.name):
        with suppress(FledgeError):  # a cache that others may only read serves all the same
            write_text(reference, commit)
    return HubCopy(path.parent, commit)

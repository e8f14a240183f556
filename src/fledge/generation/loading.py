"""The engine and the tokenizer of a model directory, alone or with adapters that can be switched."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from fledge.errors import FledgeError
from fledge.generation.engine import MAX_BATCH_SIZE, Engine
from fledge.model.adapter_files import is_adapter
from fledge.model.adapter_switch import NO_ADAPTER, AdapterSwitch
from fledge.model.loading import Purpose, base_directory, load_model, load_switch
from fledge.model.protocol import LanguageModel
from fledge.run import Log, resolve_model_path, silent
from fledge.tokenizer import Tokenizer, load_tokenizer


class SwitchableEngine:
    """A base model with one of its adapters in use, or with none: the engine and the tokenizer that go with it.

    The engine packs the weights of the base together with those of the adapter; after `set_adapter` the next use of `engine`
    packs them again."""

    def __init__(self, switch: AdapterSwitch, folders: Mapping[str | None, Path], max_batch_size: int) -> None:
        """Use `load_engine`. `folders`: the directories of the base (None) and of the adapters."""
        self._switch, self._folders, self._max_batch_size = switch, folders, max_batch_size
        self._engine: Engine | None = None
        self._tokenizers = {name: self._load_tokenizer(name) for name in switch.names or (None,)}
        self.set_adapter(next(iter(switch.names), None))

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of all adapters."""
        return self._switch.names

    @property
    def active(self) -> str | None:
        """The name of the adapter in use; None: the base model alone."""
        return self._switch.active

    def set_adapter(self, name: str | None) -> None:
        """Use the adapter with this name; None or "none": the base model alone. Raises FledgeError for an unknown name."""
        name = None if name == NO_ADAPTER else name
        if name in self._folders and name not in self._tokenizers:
            self._tokenizers[name] = self._load_tokenizer(name)
        self._switch.use(name)
        self._engine = None

    @property
    def model(self) -> LanguageModel:
        """The model with the adapter in use."""
        return self._switch.model

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the adapter in use, which may be that of the base."""
        return self._tokenizers[self.active]

    @property
    def engine(self) -> Engine:
        """The engine of the model with the adapter in use."""
        if self._engine is None:
            self._engine = Engine(self.model.eval(), self.tokenizer.stop_ids, max_batch_size=self._max_batch_size)
        return self._engine

    def _load_tokenizer(self, name: str | None) -> Tokenizer:
        return _fitting_tokenizer(self._folders[name], self._folders[None], self.model)


def load_engine(
    folder: Path,
    log: Log = silent,
    max_batch_size: int = MAX_BATCH_SIZE,
    adapters: Mapping[str, Path] | None = None,
) -> SwitchableEngine:
    """The engine of a model directory with its tokenizer, and `adapters` for this model, of which the first one is in use. A
    directory that is an adapter itself is its base model with this adapter after the others. `log` receives notes.

    Raises FledgeError if there is no model, if an adapter does not fit it, or if a tokenizer has more tokens than the model.
    """
    adapters = dict(adapters or {})
    if is_adapter(folder):
        adapters[_free_name(folder, adapters)] = folder
        folder = base_directory(folder)
    switch = load_switch(folder, adapters, log=log)
    return SwitchableEngine(switch, {None: folder, **adapters}, max_batch_size)


def load_model_and_tokenizer(folder: Path, log: Log = silent, purpose: Purpose = "language") -> tuple[LanguageModel, Tokenizer]:
    """The model of a model directory, and its tokenizer. FledgeError as `load_engine`, and for a model of another purpose."""
    model = load_model(folder, log=log, purpose=purpose)
    base = None if model.adapter is None else model.adapter.base
    return model, _fitting_tokenizer(folder, base or folder, model)


def tokenizer_directory(folder: Path) -> Path:
    """The directory with the tokenizer of a model directory; an adapter of PEFT may have that of its base."""
    return folder if (folder / "tokenizer.json").exists() or not is_adapter(folder) else base_directory(folder)


def _fitting_tokenizer(folder: Path, base: Path, model: LanguageModel) -> Tokenizer:
    """The tokenizer in a directory; an adapter of PEFT may have the tokenizer of its base."""
    tokenizer = load_tokenizer(folder if (folder / "tokenizer.json").exists() else base, needs_template=False)
    if tokenizer.vocab_size > model.vocab_size:
        unknown = tokenizer.tokens_from(model.vocab_size)
        trainable = all(is_added for _, is_added in unknown)
        raise FledgeError(
            f"the model knows {model.vocab_size:,} tokens, its tokenizer has {tokenizer.vocab_size:,}: it has no rows for "
            + ", ".join(text for text, _ in unknown[:5]),
            where=str(folder),
            hint="fine-tune it first: training adds the missing rows" if trainable else "use the tokenizer of this model",
        )
    return tokenizer


def find_adapters(locations: Sequence[str | Path]) -> dict[str, Path]:
    """The adapters of runs, stages, checkpoints or directories, by name: the last part of the location, with as many parts
    before it as tell it from the others. Raises FledgeError for one that is not there, is no adapter, or is named twice."""
    parts = [Path(os.path.abspath(Path(location).expanduser())).parts for location in locations]
    if len(set(parts)) < len(parts):
        raise FledgeError("an adapter is named twice", where=", ".join(map(str, locations)))
    names = [_short_name(one, [other for other in parts if other is not one]) for one in parts]
    return dict(zip(names, map(find_adapter, locations), strict=True))


def find_adapter(location: str | Path) -> Path:
    """The adapter directory of a run, stage, checkpoint or directory. Raises FledgeError if there is none."""
    folder = resolve_model_path(str(location))
    if not is_adapter(folder):
        hint = "name it as the model; an adapter has an adapter_config.json"
        raise FledgeError("this is a whole model and no adapter", where=str(location), hint=hint)
    return folder


def _short_name(parts: Sequence[str], others: Sequence[Sequence[str]]) -> str:
    """The end of a path that no other path has and that is not the name of the base."""
    for count in range(1, len(parts)):
        name = "/".join(parts[-count:])
        if name != NO_ADAPTER and all("/".join(other[-count:]) != name for other in others):
            return name
    return "/".join(parts)


def _free_name(folder: Path, taken: Mapping[str, Path]) -> str:
    """A name for an adapter directory: that of its stage if it is a checkpoint's."""
    place = folder.resolve()
    place = place.parents[2] if place.parent.parent.name == "checkpoints" else place
    name = _short_name(place.parts, [])
    return name if name not in taken else str(place)

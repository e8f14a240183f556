"""The data of a stage: collect its items, divide off validation, encode and pack."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import xxhash

from fledge.data.batches import PackedData
from fledge.data.examples import Placed, encode_items
from fledge.data.items import Conversation, Document, Item, RowError, recognise
from fledge.data.ledger import Ledger
from fledge.data.records import passed_over, read
from fledge.errors import FledgeError
from fledge.recipe.schema import PreferenceStage, PretrainStage, SftStage, Source
from fledge.tokenizer import Tokenizer

AnyStage = PretrainStage | SftStage | PreferenceStage


@dataclass(frozen=True)
class Collected:
    """The items of a stage before any token exists."""

    train: list[Placed]
    validation: list[Placed]
    ledger: Ledger


@dataclass(frozen=True)
class StageData:
    """What a stage trains on and is validated on."""

    train: PackedData
    validation: PackedData | None
    ledger: Ledger

    def account(self) -> dict[str, Any]:
        """data.json."""
        validation = self.validation.account() if self.validation else None
        return {**self.ledger.as_dict(), "train": self.train.account(), "validation": validation}


def _content(item: Item) -> bytes:
    return orjson.dumps(item)


def _read_source(source: Source, stage: AnyStage, ledger: Ledger, key: str) -> list[Placed]:
    account = ledger.open(source.name or source.path.rstrip("/").rsplit("/", 1)[-1], source.path)
    placed = []
    for file in passed_over(source):
        account.note("passed over in the folder: not a file of rows", str(file))
    for record in read(source, key):
        account.rows += 1
        if record.broken:
            account.drop(record.broken, record.where, record.detail)
            continue
        try:
            item = recognise(record.value, source, stage.kind, stage.data.system)
        except RowError as error:
            account.drop(error.reason, record.where, error.detail)
            continue
        placed.append(Placed(item, record.where, account))
    return placed


def _divide(placed: list[Placed], share: float, seed: int) -> tuple[list[Placed], list[Placed]]:
    """By a hash of the content: the same row always falls on the same side, and so do its duplicates."""
    if not share or not placed:
        return placed, []
    keys = [xxhash.xxh3_64_intdigest(_content(place.item), seed) for place in placed]
    border = max(int(share * 2**64), min(keys))
    train = [place for place, key in zip(placed, keys, strict=True) if key > border]
    validation = [place for place, key in zip(placed, keys, strict=True) if key <= border]
    return train, validation


def collect(stage: AnyStage, name: str, seed: int) -> Collected:
    """Read every row of a stage. FledgeError names the recipe key of a source that is missing or wholly unusable."""
    ledger = Ledger()
    key = f"stages.{name}.data"
    placed = [p for i, s in enumerate(stage.data.train) for p in _read_source(s, stage, ledger, f"{key}.train.{i}")]
    if isinstance(stage.data.validation, int | float):
        train, validation = _divide(placed, stage.data.validation, seed)
    else:
        train = placed
        sources = enumerate(stage.data.validation)
        validation = [p for i, s in sources for p in _read_source(s, stage, ledger, f"{key}.validation.{i}")]
    ledger.refuse_unusable(key)
    return Collected(train, validation, ledger)


def texts(collected: Collected) -> Iterator[str]:
    """All training text of a stage, for the tokenizer to learn from."""
    for place in collected.train:
        item = place.item
        if isinstance(item, Document):
            yield item.text
        elif isinstance(item, Conversation):
            yield from (message.content for message in item.messages)
        else:
            yield from (message.content for message in item.prompt)
            yield from (item.chosen, item.rejected)


def encode(collected: Collected, stage: AnyStage, name: str, tokenizer: Tokenizer, seed: int) -> StageData:
    """Tokens, weights and packed rows. A preference row holds a pair, so it is twice as long as the context."""
    key, context = f"stages.{name}.data", stage.data.context
    split = stage.kind == "pretrain"
    row_length = context * (2 if stage.kind == "preference" else 1)
    packed: list[PackedData | None] = []
    for part, placed in enumerate((collected.train, collected.validation)):
        before = {id(account): account.used for account in collected.ledger.sources}
        examples = encode_items(placed, tokenizer, context, stage.kind)
        if part == 1:
            for account in collected.ledger.sources:
                account.validation = account.used - before[id(account)]
        packed.append(PackedData.pack(examples, row_length, tokenizer.pad, seed, split) if examples.count else None)
    train, validation = packed
    collected.ledger.close(key)
    if train is None:
        raise FledgeError("no training example is left", where=key, hint="lower data.validation or add rows")
    if validation is None and collected.validation:
        raise FledgeError(
            f"no validation example is left: none of its {len(collected.validation)} rows fits the context",
            where=f"{key}.validation",
            hint="take more rows for validation, lengthen data.context, or set validation to 0",
        )
    if split:
        _count_split(train, collected.train)
    return StageData(train, validation, collected.ledger)


def _count_split(train: PackedData, placed: list[Placed]) -> None:
    """Documents whose tokens lie in more than one packed row."""
    parts = np.bincount(train.rows.sequence, minlength=len(placed))
    for index in np.flatnonzero(parts > 1):
        placed[index].account.split += 1

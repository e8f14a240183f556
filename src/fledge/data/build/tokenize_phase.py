"""The tokenize phase: from the kept items of one shard to stored token sequences.

    items.jsonl -> items of a split -> examples -> <split>.tokens, <split>.weights, index.safetensors

The output is a pure function of the plan, the shard, its items and keep mask, and the tokenizer.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from fledge.data.build.directory import EVENTS_FILE, TRAIN, VALIDATION, BuildDirectory
from fledge.data.build.phase_output import write_output
from fledge.data.build.plan import BuildPlan, Shard
from fledge.data.build.shard_items import ShardItems
from fledge.data.encoding.control_tokens import ControlTokenFinder, with_control_tokens_noticed
from fledge.data.encoding.examples import Encoded
from fledge.data.parsing.items import Item
from fledge.data.row_events import RowEventLog
from fledge.data.storage import SequenceWriter, token_type
from fledge.recipe.schema import AugmentConfig
from fledge.run.text_files import give_usual_mode
from fledge.tokenizer import Tokenizer, load_tokenizer

SPLITS = {"train": TRAIN, "validation": VALIDATION}  # names of the stored files -> values of the keep mask


def run_tokenize_phase(build: BuildDirectory, shard: Shard) -> None:
    """Encode one shard: write the training and the validation sequences, and the row that each example comes from."""
    write_output(build.tokens(shard), lambda folder: _tokenize_shard(build, shard, folder))


def _tokenize_shard(build: BuildDirectory, shard: Shard, folder: Path) -> dict[str, Any]:
    """Run all kept items of a shard through the steps, one split after the other; returns the counts."""
    tokenizer, items, keep = tokenizer_of(build), ShardItems.of(build, shard), build.keep_mask(shard)
    parsed = build.plan.parses_special_tokens(shard)
    arrays: dict[str, np.ndarray] = {}
    counts: dict[str, Any] = {}
    with (folder / EVENTS_FILE).open("wb") as events_file:
        events = RowEventLog(events_file)
        for split, mark in SPLITS.items():
            encoded = encode_split(items, keep == mark, build.plan, split, tokenizer, parsed)
            logged = log_events(encoded, items, events)
            counts[split], index = write_sequences(logged, build.plan, split, tokenizer, folder)
            arrays.update({f"{split}.{column}": values for column, values in index.items()})
    save_file(arrays, folder / "index.safetensors")
    give_usual_mode(folder / "index.safetensors")
    return {
        "row_events": events.as_dict(),
        "splits": counts,
        "encoder_backend": tokenizer.encoder_backend,
        "encoder_fallback_reason": tokenizer.encoder_fallback_reason,
    }


# -- the steps, in the order of the walk --------------------------------------------------------------------------------


def encode_split(
    items: ShardItems, mask: np.ndarray, plan: BuildPlan, split: str, tokenizer: Tokenizer, parsed: bool = False
) -> Iterator[tuple[int, Encoded]]:
    """Encode the items that `mask` (bool [items]) marks; yields (index of the item in the shard, its encoding). Validation
    items are not augmented. `parsed`: control tokens in the texts become single tokens."""
    config = plan.format.encoding_config(plan.data, plan.seed)
    if split != "train":
        config = replace(config, augment=AugmentConfig())
    encoding = tokenizer.parsing_special_tokens() if parsed else tokenizer

    def encode(observed: Iterable[Item]) -> Iterator[Encoded]:
        return plan.format.encode(observed, encoding, config)

    encoded = with_control_tokens_noticed(items.read(mask), ControlTokenFinder(tokenizer, parsed), encode)
    return zip(np.flatnonzero(mask).tolist(), encoded, strict=True)


def log_events(encoded: Iterator[tuple[int, Encoded]], items: ShardItems, events: RowEventLog) -> Iterator[tuple[int, Encoded]]:
    """Log the events of each item; yields (number of the row in the shard, the encoding of its item)."""
    for index, item in encoded:
        row = items.row(index)
        for event in item.events:
            events.add(row, items.location(index), event)
        yield row, item


def write_sequences(
    encoded: Iterator[tuple[int, Encoded]], plan: BuildPlan, split: str, tokenizer: Tokenizer, folder: Path
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Store the sequences of a split. Returns its counts and its index, int64: `lengths` [S] and `target_tokens` [S] of the
    sequences, `row` [E] of the examples and, in formats with labels or margins, `label` [E] or `margin` [E] (float64)."""
    weighted = plan.format.has_loss_weights
    writer = SequenceWriter(folder, split, token_type(tokenizer.vocab_size), weighted)
    stop_ids = np.asarray(sorted(tokenizer.stop_ids))
    rows: list[int] = []
    labels: list[int] = []
    margins: list[float] = []
    used_rows = ended = 0
    for row, item in encoded:
        used_rows += bool(item.examples)
        for example in item.examples:
            rows.append(row)
            labels += [] if item.label is None else [item.label]
            margins += [] if item.margin is None else [item.margin]
            for tokens, weights in example:
                writer.write(tokens, weights)
                ended += weighted and _trains_end(tokens, weights, stop_ids)
    columns: dict[str, list[int]] = {"lengths": writer.lengths, "target_tokens": writer.target_tokens, "row": rows}
    if plan.format.has_labels:
        columns["label"] = labels
    counts = {
        "used_rows": used_rows, "digest": writer.close(), "examples": len(rows), "ended": ended,
        "tokens": sum(writer.lengths), "target_tokens": sum(writer.target_tokens),
    }  # fmt: skip
    index: dict[str, np.ndarray] = {column: np.asarray(values, dtype=np.int64) for column, values in columns.items()}
    if plan.format.has_margins:
        index["margin"] = np.asarray(margins, dtype=np.float64)
    return counts, index


def _trains_end(tokens: np.ndarray, weights: np.ndarray, stop_ids: np.ndarray) -> bool:
    """Whether an end token is among the targets with weight."""
    return bool(np.isin(tokens[1:][weights[1:] > 0], stop_ids).any())


# -- what a process loads once ------------------------------------------------------------------------------------------


def tokenizer_of(build: BuildDirectory) -> Tokenizer:
    """The tokenizer of a build directory, loaded again only when it changed."""
    return _tokenizer(build.tokenizer, (build.tokenizer / "tokenizer.json").stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _tokenizer(folder: Path, _changed: int) -> Tokenizer:
    return load_tokenizer(folder, needs_template=False)

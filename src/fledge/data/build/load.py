"""A complete build as packed data: memory-mapped, mixed, checked against what was requested and what was written."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from fledge.data.build.directory import (
    MANIFEST_FILE,
    REPORT_FILE,
    VALIDATION,
    BuildDirectory,
    differences,
    is_complete,
)
from fledge.data.build.phase_output import read_tokens_result
from fledge.data.build.plan import BuildPlan, requested_data
from fledge.data.dataset.mixing import Mixture, SourceQuota
from fledge.data.dataset.packed_dataset import PackedDataset
from fledge.data.formats import DataStage
from fledge.data.report import DataReport
from fledge.data.row_events import BUILD_AGAIN
from fledge.data.storage import ConcatenatedArrays, Examples, UniformWeights, digest_of, load_arrays, memmap, token_type
from fledge.errors import FledgeError
from fledge.run.file_shapes import StageData
from fledge.run.text_files import read_json
from fledge.tokenizer import Tokenizer


class Manifest(StageData):
    """manifest.json of a build: fingerprints of its tokenizer and of its packed data."""

    tokenizer: str


def split_fingerprints(data_report: Mapping[str, Any]) -> list[str | None]:
    """The fingerprints of the training and validation data in a data_report.json."""
    return [split and split["fingerprint"] for split in (data_report["train"], data_report["validation"])]


@dataclass(frozen=True, kw_only=True)
class StageDataset:
    """The training and validation data of a stage, the report of its rows, and the build that it was loaded from."""

    build: BuildDirectory
    train: PackedDataset
    validation: PackedDataset | None
    report: DataReport
    _temporary: Any = field(default=None, repr=False)  # keeps a temporary folder for as long as this lives

    @property
    def folder(self) -> Path:
        """The build directory."""
        return self.build.folder

    @property
    def plan(self) -> BuildPlan:
        """The plan of the build."""
        return self.build.plan

    def sharing_prompts(self) -> "StageDataset":
        """This data, packed anew so that the sequences of an example share their beginning."""
        validation = self.validation and self.validation.sharing_beginnings()
        return replace(self, train=self.train.sharing_beginnings(), validation=validation)

    def as_dict(self) -> dict[str, Any]:
        """The content of a run's data_report.json: the sources, the packed training and validation data, and the mixture."""
        mixture = self.train.mixture
        return {
            **self.report.as_dict(),
            "train": self.train.summary(),
            "validation": self.validation.summary() if self.validation else None,
            "mixture": mixture.summary(0) if mixture else None,
        }


def load_dataset(build: BuildDirectory, report: DataReport, tokenizer: Tokenizer, temporary: Any = None) -> StageDataset:
    """Map the tokens of a build whose shards are all encoded. Raises FledgeError if training or validation has no example."""
    plan = build.plan
    dtype = token_type(tokenizer.vocab_size)
    train, validation = (_load_examples(build, split, dtype) for split in ("train", "validation"))
    if not train.count:
        raise FledgeError("no training example is left", where=plan.key, hint="lower data.validation or add rows")
    intended = _validation_items(build)
    if not validation.count and intended:
        raise FledgeError(
            f"no validation example is left: none of its {intended:,} rows fits the context",
            where=f"{plan.key}.validation",
            hint="use more rows for validation, lengthen data.max_seq_len, or set validation to 0",
        )

    def packed(examples: Examples, mixture: Mixture | None = None) -> PackedDataset:
        return PackedDataset(
            examples,
            packed_length=plan.format.packed_length(plan.data.max_seq_len),
            pad=tokenizer.pad,
            seed=plan.seed,
            split_documents=plan.format.splits_documents,
            halves_rows=plan.format.halves_rows,
            packs=plan.format.packs,
            mixture=mixture,
            sources=tuple(source.name for source in plan.sources),
        )

    return StageDataset(
        build=build,
        train=packed(train, _mixture(plan, train)),
        validation=packed(validation) if validation.count else None,
        report=report,
        _temporary=temporary,
    )


def _load_examples(build: BuildDirectory, split: str, dtype: np.dtype) -> Examples:
    """The memory-mapped sequences of a split, over all shards."""
    example_format = build.plan.format
    own = (("label", example_format.has_labels), ("margin", example_format.has_margins))
    stored = ("lengths", "target_tokens", "row", *(name for name, is_stored in own if is_stored))
    tokens: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    columns: dict[str, list[np.ndarray]] = {
        **{name: [np.zeros(0, np.int64)] for name in stored},
        **{name: [np.zeros(0, np.int32)] for name in ("source", "shard")},
    }
    digest = xxhash.xxh3_64()
    for shard in build.plan.encoded_shards():
        folder = build.tokens(shard)
        index = load_arrays(folder / "index.safetensors")
        if not len(index[f"{split}.lengths"]):
            continue
        count = int(index[f"{split}.lengths"].sum())
        tokens.append(_mapped(folder / f"{split}.tokens", dtype, count))
        if example_format.has_loss_weights:
            weights.append(_mapped(folder / f"{split}.weights", np.dtype(np.float32), count))
        for name in stored:
            columns[name].append(index[f"{split}.{name}"])
        examples = len(index[f"{split}.row"])
        columns["source"].append(np.full(examples, shard.source, np.int32))
        columns["shard"].append(np.full(examples, shard.number, np.int32))
        digest.update(read_tokens_result(folder)["splits"][split]["digest"].encode())
    joined = {name: np.concatenate(arrays) for name, arrays in columns.items()}
    stream = ConcatenatedArrays(tuple(tokens))
    return Examples(
        tokens=stream,
        weights=ConcatenatedArrays(tuple(weights)) if example_format.has_loss_weights else UniformWeights(len(stream)),
        offsets=np.concatenate(([0], np.cumsum(joined["lengths"]))).astype(np.int64),
        sequences_per_example=example_format.sequences_per_example,
        digest=digest.hexdigest(),
        source=joined["source"],
        shard=joined["shard"],
        row=joined["row"],
        counted_target_tokens=joined["target_tokens"],
        labels=joined["label"].astype(bool) if example_format.has_labels else None,
        margins=joined["margin"].astype(np.float32) if example_format.has_margins else None,
    )


def _mapped(file: Path, dtype: np.dtype, count: int) -> np.ndarray:
    """A memory-mapped file of `count` numbers; FledgeError where it has another size."""
    if not file.exists() or file.stat().st_size != count * dtype.itemsize:
        message = "damaged: the size of this file is not the size that was written"
        raise FledgeError(message, where=str(file), hint="build it again")
    return memmap(file, dtype)


def _validation_items(build: BuildDirectory) -> int:
    """Number of items that were assigned to validation."""
    return sum(int((build.keep_mask(shard) == VALIDATION).sum()) for shard in build.plan.encoded_shards())


def _mixture(plan: BuildPlan, train: Examples) -> Mixture | None:
    """The mixture of the training sources; None if no source has a quota."""
    planned = [item for item in plan.sources if item.split == "train"]
    if not any(item.source.mixed for item in planned):
        return None
    assert train.source is not None
    quotas = tuple(SourceQuota.of(item.source, item.name) for item in planned)
    return Mixture(train.source, train.tokens_per_example(), quotas, plan.seed, train.row_numbers())


def load_built_dataset(folder: Path, stage: DataStage, tokenizer: Tokenizer, seed: int) -> StageDataset:
    """Load the data of a complete build. Raises FledgeError if it was built with other settings or is damaged."""
    build = BuildDirectory.open(folder)
    if not is_complete(folder):
        raise FledgeError("this build is not complete", where=str(folder), hint="run `fledge data build` again")
    changed = differences(build.plan.requested, requested_data(stage, seed))
    if changed:
        raise FledgeError(
            "this directory was built for something else:\n  " + "\n  ".join(changed),
            where=str(folder),
            hint="build it again with `fledge data build`",
        )
    manifest = read_json(folder / MANIFEST_FILE, Manifest, BUILD_AGAIN)
    if manifest["tokenizer"] != tokenizer.fingerprint():
        raise FledgeError("this directory was built with another tokenizer", where=str(folder), hint="build it again")
    dataset = load_dataset(build, DataReport.read(folder / REPORT_FILE), tokenizer)
    for split, packed in (("train", dataset.train), ("validation", dataset.validation)):
        if packed is not None and packed.fingerprint() != (manifest[split] or {}).get("fingerprint"):
            raise FledgeError(f"the {split} tokens are not those that were built", where=str(folder), hint="build it again")
    _check_digests(build)
    return dataset


def _check_digests(build: BuildDirectory) -> None:
    """FledgeError where the content of a file is not what was written."""
    for shard in build.plan.encoded_shards():
        folder = build.tokens(shard)
        for split, counts in read_tokens_result(folder)["splits"].items():
            if digest_of(folder, split) != counts["digest"]:
                raise FledgeError(f"damaged: the {split} tokens are not those that were written", where=str(folder),
                                  hint="build it again")  # fmt: skip

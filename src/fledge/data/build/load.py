"""Built tokens as packed data: memory-mapped, mixed, checked against what was asked and what was written."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from fledge.data.build.folder import differences, is_complete
from fledge.data.build.phases import VALIDATION, keep_mask, phase_result
from fledge.data.build.shards import AnyStage, BuildPlan
from fledge.data.dataset.batches import PackedDataset
from fledge.data.dataset.mixing import Mixture, SourceQuota
from fledge.data.report import DataReport, SourceReport
from fledge.data.storage import ConcatenatedArrays, Examples, UniformWeights, digest_of, load_arrays, memmap, token_type
from fledge.errors import FledgeError
from fledge.run.text_files import read_json
from fledge.tokenizer import Tokenizer


@dataclass(frozen=True)
class StageDataset:
    """What a stage trains on and is validated on."""

    folder: Path
    train: PackedDataset
    validation: PackedDataset | None
    ledger: DataReport
    _temporary: Any = field(default=None, repr=False)

    def account(self) -> dict[str, Any]:
        """data_report.json."""
        validation = self.validation.account() if self.validation else None
        mixture = self.train.mixture
        made = {**self.ledger.as_dict(), "train": self.train.account(), "validation": validation}
        return {**made, "mixture": mixture.account(0) if mixture else None}


def _examples(folder: Path, plan: BuildPlan, part: str, kind: np.dtype) -> Examples:
    """The memory-mapped sequences of a part, over all shards."""
    per, weighted = (2 if plan.stage.kind == "preference" else 1), plan.stage.kind != "pretrain"
    tokens, weights, lengths, supervised, source, shards, rows = [], [], [], [], [], [], []
    digest = xxhash.xxh3_64()
    for shard in plan.of_part("train", "validation"):
        at = folder / "tokens" / shard.folder
        index = load_arrays(at / "index.safetensors")
        if not len(index[f"{part}.lengths"]):
            continue
        count = int(index[f"{part}.lengths"].sum())
        tokens.append(_mapped(at / f"{part}.tokens", kind, count))
        if weighted:
            weights.append(_mapped(at / f"{part}.weights", np.dtype(np.float32), count))
        lengths.append(index[f"{part}.lengths"])
        supervised.append(index[f"{part}.supervised"])
        rows.append(index[f"{part}.row"])
        source.append(np.full(len(index[f"{part}.row"]), shard.source, np.int32))
        shards.append(np.full(len(index[f"{part}.row"]), shard.number, np.int32))
        digest.update(phase_result(at)["parts"][part]["digest"].encode())
    join = lambda arrays, type_: np.concatenate(arrays) if arrays else np.zeros(0, type_)  # noqa: E731
    offsets = np.concatenate(([0], np.cumsum(join(lengths, np.int64)))).astype(np.int64)
    joined = ConcatenatedArrays(tuple(tokens))
    return Examples(
        joined,
        ConcatenatedArrays(tuple(weights)) if weighted else UniformWeights(len(joined)),
        offsets,
        per,
        digest.hexdigest(),
        join(source, np.int32),
        join(shards, np.int32),
        join(rows, np.int64),
        join(supervised, np.int64),
    )


def _mapped(file: Path, kind: np.dtype, count: int) -> np.ndarray:
    """A memory-mapped file of so many numbers; FledgeError where it has another size."""
    if not file.exists() or file.stat().st_size != count * kind.itemsize:
        raise FledgeError("damaged: this file has not the size it was written with", where=str(file), hint="build it again")
    return memmap(file, kind)


def load_dataset(
    folder: Path, plan: BuildPlan, ledger: DataReport, tokenizer: Tokenizer, temporary: Any = None
) -> StageDataset:
    """Map the tokens of a complete build."""
    stage, key = plan.stage, f"stages.{plan.name}.data"
    kind, split = token_type(tokenizer.vocab_size), stage.kind == "pretrain"
    length = stage.data.max_seq_len * (2 if stage.kind == "preference" else 1)
    train, validation = (_examples(folder, plan, part, kind) for part in ("train", "validation"))
    if not train.count:
        raise FledgeError("no training example is left", where=key, hint="lower data.validation or add rows")
    wanted = _divided(folder, plan)
    if not validation.count and wanted:
        raise FledgeError(
            f"no validation example is left: none of its {wanted:,} rows fits the context",
            where=f"{key}.validation",
            hint="take more rows for validation, lengthen data.max_seq_len, or set validation to 0",
        )
    names = tuple(item.name for item in plan.sources)
    packed = PackedDataset(train, length, tokenizer.pad, plan.seed, split, _mixture(plan, train), names)
    held_out = PackedDataset(validation, length, tokenizer.pad, plan.seed, split, sources=names) if validation.count else None
    return StageDataset(folder, packed, held_out, ledger, temporary)


def _divided(folder: Path, plan: BuildPlan) -> int:
    """How many rows were meant for validation."""
    return sum(int((keep_mask(folder, shard) == VALIDATION).sum()) for shard in plan.of_part("train", "validation"))


def _mixture(plan: BuildPlan, train: Examples) -> Mixture | None:
    """How epochs draw from the sources, if the recipe says anything about it."""
    planned = [item for item in plan.sources if item.part == "train"]
    if not any(item.source.mixed for item in planned):
        return None
    assert train.source is not None
    quotas = tuple(SourceQuota.of(item.source, item.name) for item in planned)
    return Mixture(train.source, train.tokens_per_example(), quotas, plan.seed, train.row_numbers())


def load_built_dataset(folder: Path, stage: AnyStage, name: str, tokenizer: Tokenizer, seed: int) -> StageDataset:
    """The data of a complete build; FledgeError where it was built for something else or is damaged."""
    plan = BuildPlan.read(folder / "build_plan.json")
    if not is_complete(folder):
        raise FledgeError("this build is not complete", where=str(folder), hint="run `fledge data build` again")
    manifest = read_json(folder / "manifest.json")
    changed = differences(plan, BuildPlan(stage, name, seed, (), (), 0, (), {}))
    if changed:
        raise FledgeError(
            "this directory was built for something else:\n  " + "\n  ".join(changed),
            where=str(folder),
            hint="build it again with `fledge data build`",
        )
    if manifest["tokenizer"] != tokenizer.fingerprint():
        raise FledgeError("this directory was built with another tokenizer", where=str(folder), hint="build it again")
    ledger = DataReport([_account(saved) for saved in read_json(folder / "data_report.json")["sources"]])
    data = load_dataset(folder, plan, ledger, tokenizer)
    for part, packed in (("train", data.train), ("validation", data.validation)):
        if packed is not None and packed.fingerprint() != manifest[part]["fingerprint"]:
            raise FledgeError(f"the {part} tokens are not those that were built", where=str(folder), hint="build it again")
    _verify(folder, plan)
    return data


def _verify(folder: Path, plan: BuildPlan) -> None:
    """FledgeError where a file's content is not what was written."""
    for shard in plan.of_part("train", "validation"):
        at = folder / "tokens" / shard.folder
        for part, counted in phase_result(at)["parts"].items():
            if digest_of(at, part) != counted["digest"]:
                raise FledgeError(f"damaged: the {part} tokens are not those that were written", where=str(at),
                                  hint="build it again")  # fmt: skip


def _account(saved: dict[str, Any]) -> SourceReport:
    account = SourceReport(saved["name"], saved["path"], saved["part"])
    for key in ("rows", "used", "validation", "truncated", "shortened", "split", "tokens", "target_tokens", "tokens_lost"):
        setattr(account, key, saved[key])
    account.examples = saved["training_examples"]
    for state in ("dropped", "changed", "noticed", "cut"):
        setattr(account, state, Counter(saved[state]))
    account.keep(saved["examples"])
    return account

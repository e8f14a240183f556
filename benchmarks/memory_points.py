"""The points of plan_memory.py: models, batches and ways to compute."""

import json
import random
import zlib
from dataclasses import asdict, dataclass, replace
from typing import Any

MIB = 2**20
UPDATES = 3  # the allocator keeps what the first ones have left
PRODUCTS = 1.2e10  # most tokens × multiplying parameters of a random update: a few seconds
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
ADAPTED = ("lora", "qlora", "lora_dpo")
DPO = ("dpo", "dpo_table", "lora_dpo")


@dataclass(frozen=True, kw_only=True)
class Point:
    """A model, a batch and a way to compute. `kind`: `full`, one of ADAPTED or of DPO; `dpo_table`: the reference's
    log-probabilities are known. `moment`: what the process does."""

    width: int = 256
    layers: int = 4
    length: int = 512
    vocabulary: int = 6400
    rows: int = 4
    accumulation: int = 1
    checkpointing: str | int = "none"
    kind: str = "full"
    experts: int = 0
    shared_experts: int = 0
    precision: str = "fp32"
    compile: bool = False
    attention: str = "blocked"
    optimizer: str = "adamw"
    kv_heads: int = 1
    tied: bool = True
    qk_norm: bool = False
    ema: bool = False
    moment: str = "training"

    @property
    def family(self) -> str:
        """The settings but for the rows."""
        return json.dumps({name: value for name, value in asdict(self).items() if name != "rows"}, sort_keys=True)

    @property
    def is_held_out(self) -> bool:
        """Whether the formula was made without it."""
        return zlib.crc32(self.family.encode()) % 2 == 1

    @property
    def tokens_of_row(self) -> int:
        """Tokens of a packed row: of pairs there are twice as many."""
        return self.length * (2 if self.kind in DPO else 1)

    def recipe(self) -> Any:
        """The recipe of the point, with one stage."""
        from fledge.recipe import recipe_from_dict

        heads = self.width // 64
        model = {
            "hidden_size": self.width, "num_hidden_layers": self.layers, "num_attention_heads": heads,
            "num_key_value_heads": min(self.kv_heads, heads), "intermediate_size": -(-self.width * 8 // 3 // 64) * 64,
            "max_position_embeddings": max(4096, self.tokens_of_row), "tie_word_embeddings": self.tied, "qk_norm": self.qk_norm,
        }  # fmt: skip
        if self.experts:
            moe = {**EXPERTS, "num_experts": self.experts, "num_shared_experts": self.shared_experts}
            model |= {"moe": moe, "intermediate_size": self.width}
        stage: dict[str, Any] = {
            "kind": "preference" if self.kind in DPO else "sft" if self.kind in ADAPTED else "pretrain",
            "data": {"train": "rows", "max_seq_len": self.length},
            "batch": {"micro_batch_size": self.rows, "gradient_accumulation_steps": self.accumulation},
            "duration": "100 steps",
            "optimizer": {"name": self.optimizer, "learning_rate": 1e-4, "betas": [0.9, 0.95], "weight_decay": 0.1},
        }
        if self.kind in ADAPTED:
            stage["adapter"] = {"r": 16}
        if self.kind == "qlora":
            stage["quantization"] = {}
        if self.kind in DPO:
            stage["precompute_ref_log_probs"] = self.kind == "dpo_table"
        if self.ema:
            stage["ema"] = {"decay": 0.99, "start_fraction": 0.0}
        runtime = {
            "device": "cpu", "precision": self.precision, "compile": self.compile, "attention": self.attention,
            "activation_checkpointing": self.checkpointing,
        }  # fmt: skip
        before = {"before": {"kind": "pretrain", "data": {"train": "rows"}}} if self.kind in ADAPTED else {}
        return recipe_from_dict({"model": model, "runtime": runtime, "stages": {**before, "stage": stage}})

    def data(self) -> Any:
        """Random rows of three documents each, or of one pair."""
        import numpy as np

        from fledge.data import PackedDataset
        from fledge.data.storage import Examples

        length, pieces = self.tokens_of_row, 2 if self.kind in DPO else 3
        count = self.rows * self.accumulation * (UPDATES + 1)
        lengths = np.array(([length // pieces] * (pieces - 1) + [length - (pieces - 1) * (length // pieces)]) * count)
        offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        weights = np.ones(int(offsets[-1]), np.float32)
        if self.kind != "full":  # prompts are not learned
            for start, size in zip(offsets[:-1], lengths, strict=True):
                weights[start : start + size // 2] = 0
        tokens = np.random.default_rng(0).integers(0, self.vocabulary, len(weights)).astype(np.int32)
        examples = Examples(tokens=tokens, weights=weights, offsets=offsets, sequences_per_example=2 if self.kind in DPO else 1)
        return PackedDataset(examples, length, pad=0, seed=1, split_documents=False)


# -- the grid --------------------------------------------------------------------------------------------------------------


def family_of(largest: Point) -> list[Point]:
    """The point with a third of the rows, and with all."""
    return [replace(largest, rows=max(1, largest.rows // 3)), largest]


def random_point(draw: random.Random) -> Point:
    """A dense or sparse model that is trained whole, with as many rows as can be measured in a few seconds."""
    width, layers = draw.choice([(128, 4), (128, 8), (192, 6), (256, 2), (256, 4), (384, 2), (384, 4), (512, 2), (768, 1)])
    experts = draw.choice([0, 0, 0, 0, 4, 8])
    shared = draw.choice([0, 1]) if experts else 0
    point = Point(
        width=width,
        layers=layers,
        length=draw.choice([128, 256, 512, 512, 1024, 2048]),
        vocabulary=draw.choice([2048, 6400, 6400, 16_000, 32_000, 65_536]),
        accumulation=draw.choice([1, 1, 1, 2]),
        checkpointing=draw.choice(["none", "none", "none", 2, "full"]) if layers > 1 else "none",
        experts=experts,
        shared_experts=shared,
        precision=draw.choice(["fp32", "bf16"]),
        attention=draw.choice(["blocked", "blocked", "segments", "sdpa"]),
        optimizer=draw.choice(["adamw", "adamw", "muon", "adamw8bit"]),
        kv_heads=draw.choice([1, 64]),
        tied=draw.random() < 0.7,
        qk_norm=shared == 0 if experts else draw.random() < 0.4,  # as the files of a mixture have it
        ema=draw.random() < 0.15,
    )
    multiplied = 12 * width**2 * layers + point.vocabulary * width
    tokens = min(draw.uniform(0.5, 1.0) * PRODUCTS / multiplied / point.accumulation, 400 * MIB / (60 * width * layers))
    return replace(point, rows=max(3, round(tokens / point.length)))


def grid(seed: int = 20) -> list[Point]:
    """All points: random families, and families of every kind of stage. Another `seed` draws others, which were never looked
    at."""
    draw = random.Random(seed)
    families = [random_point(draw) for _ in range(48)]
    lora = Point(kind="lora", width=384, layers=3, rows=4)
    families += [
        lora,
        replace(lora, precision="bf16", width=512, rows=6),
        replace(lora, precision="bf16", attention="segments", checkpointing="full", rows=8),
        replace(lora, attention="sdpa", length=1024, vocabulary=16_000),
        replace(lora, kind="qlora", width=512, precision="bf16"),
        replace(lora, kind="qlora", vocabulary=16_000),
        replace(lora, kind="qlora", checkpointing="full", rows=8),
        replace(lora, kind="lora_dpo", rows=3),
        replace(lora, kind="dpo", rows=3),
        replace(lora, kind="dpo", rows=3, precision="bf16", width=512, layers=2, vocabulary=16_000),
        replace(lora, kind="dpo", rows=6, width=256, attention="segments", checkpointing="full"),
        replace(lora, kind="dpo_table", rows=6, width=256),
        replace(lora, kind="dpo_table", rows=3, precision="bf16", vocabulary=16_000),
        Point(moment="reference", width=384, rows=16, vocabulary=16_000),
        Point(moment="reference", rows=24, precision="bf16", layers=8),
        Point(moment="saving", width=512, rows=3, length=256),
        Point(moment="saving", width=384, vocabulary=32_000, rows=3, optimizer="muon", ema=True),
    ]
    compiled = Point(compile=True, layers=2, width=384, rows=9)
    families += [compiled, replace(compiled, precision="bf16", rows=12)]
    return [point for largest in families for point in family_of(largest)]


def quick_grid() -> list[Point]:
    """Eight points that take little time."""
    dense = Point(width=256, layers=2, length=256, rows=16)
    families = [dense, replace(dense, precision="bf16", checkpointing="full"), replace(dense, kind="lora"),
                replace(dense, vocabulary=32_000, attention="segments", rows=8)]  # fmt: skip
    return [point for largest in families for point in family_of(largest)]

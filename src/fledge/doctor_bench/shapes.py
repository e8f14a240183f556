"""The shapes of stages that the bench trains: what a healthy run of each looks like."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CONTEXT = 128
LORA = {"r": 8, "lora_alpha": 16.0}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
T5_SIZES: dict[str, Any] = {
    "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True, "vocab_size": 800,
    "d_model": 48, "d_kv": 24, "d_ff": 128, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2, "pad_token_id": 0,
    "eos_token_id": 1, "decoder_start_token_id": 0, "dropout_rate": 0.0, "feed_forward_proj": "gated-gelu",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One shape of a stage. An entry of a table.

    `kind`: of the stage. `rows`: name of the files of rows. `start`: name of the start model of the group; None: fresh weights.
    `steps`: updates. `micro_batch_rows`, `accumulation`: of an update. `rate`: learning rate (`auto`, where the planner derives
    one). `stage`, `model`: further keys. `is_encoder_decoder`: fresh weights of the sizes `T5_SIZES`.
    """

    kind: str
    rows: str
    steps: int
    start: str | None = None
    micro_batch_rows: int = 4
    accumulation: int = 2
    rate: float | str = "auto"
    stage: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    is_encoder_decoder: bool = False


PREFERENCE = {"beta": 0.1, "sft_loss_weight": 0.0}
GRPO: dict[str, Any] = {
    "rewards": [{"rule": "length", "max_tokens": 6}, {"rule": "repetition"}],
    "rollout": {"num_generations": 4, "max_new_tokens": 16},
    "beta": 0.02,
}

SHAPES: dict[str, Shape] = {
    "pretrain": Shape(kind="pretrain", rows="pretrain", steps=100),
    "moe": Shape(kind="pretrain", rows="pretrain", steps=60, model={"moe": EXPERTS}),
    "sft": Shape(kind="sft", rows="sft", steps=60, start="half"),
    "lora": Shape(kind="sft", rows="sft", steps=60, start="half", stage={"adapter": LORA}),
    "dpo": Shape(kind="preference", rows="preference", steps=40, start="chat", micro_batch_rows=2, stage=PREFERENCE),
    "kto": Shape(kind="kto", rows="kto", steps=40, start="chat", stage={"beta": 0.1}),
    "reward": Shape(kind="reward", rows="preference", steps=40, start="chat", micro_batch_rows=2, rate=1e-3),
    "grpo": Shape(
        kind="grpo", rows="prompts", steps=24, start="chat", micro_batch_rows=4, accumulation=1, rate=3e-4, stage=GRPO
    ),
    "seq2seq": Shape(kind="sft", rows="sft", steps=150, rate=5e-3, is_encoder_decoder=True),
}
"""`base`: pretrained on the group's texts; `chat`: then tuned on its conversations; `half`: tuned for half as long,
so that the ends of turns are known, whose embedding an adapter does not train."""

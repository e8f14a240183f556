"""The groups of the bench: model size, data and language of runs, and whether thresholds were tuned on them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

DECODER = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128, "qk_norm": True}
SMALL: dict[str, Any] = {**DECODER, "hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 128}
LARGER: dict[str, Any] = {**DECODER, "hidden_size": 96, "num_hidden_layers": 3, "intermediate_size": 256}
MIDDLE: dict[str, Any] = {**DECODER, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 176}


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs with one model size on one set of data.

    `part`: `quick`, a look whether everything works; `dev`, whose results thresholds are tuned on; `held-out`, which is read
    only with frozen thresholds. `source`: a key of `group_data.SOURCES`; `data_seed`, `languages`: of its rows. `shapes`: names
    of the shapes of stages. `start_steps`: updates of start models, by name.
    """

    name: str
    part: Literal["quick", "dev", "held-out"]
    model: Mapping[str, Any]
    shapes: tuple[str, ...]
    source: str = "world"
    data_seed: int = 1
    languages: str = "zh+en"
    vocab_size: int = 800
    start_steps: Mapping[str, int] = field(default_factory=lambda: {"base": 500, "half": 150, "chat": 300})


ONE_LANGUAGE = ("pretrain", "sft", "dpo", "grpo")
DECODER_SHAPES = ("pretrain", "moe", "sft", "lora", "dpo", "grpo")
TINY: dict[str, Any] = {**DECODER, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 96}
GROUPS: dict[str, Group] = {
    one.name: one
    for one in (
        Group(name="quick", part="quick", model=TINY, shapes=("pretrain", "sft"), start_steps={"base": 100, "half": 40}),
        Group(name="dev", part="dev", model=SMALL, shapes=DECODER_SHAPES),
        Group(name="size", part="held-out", model=LARGER, shapes=DECODER_SHAPES, data_seed=2),
        Group(name="data", part="held-out", model=MIDDLE, shapes=("pretrain", "sft", "lora", "dpo"), source="real"),
        Group(name="language", part="held-out", model=SMALL, shapes=ONE_LANGUAGE, data_seed=3, languages="zh"),
        Group(name="stages", part="held-out", model=SMALL, shapes=("kto", "reward", "seq2seq"), data_seed=4),
    )
}
PARTS = ("dev", "held-out")
QUICK = "quick"

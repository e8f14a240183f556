"""The groups of the bench: model size, data and language of runs, and whether thresholds were tuned on them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

DECODER = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128, "qk_norm": True}
SMALL: dict[str, Any] = {**DECODER, "hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 128}
LARGER: dict[str, Any] = {**DECODER, "hidden_size": 96, "num_hidden_layers": 3, "intermediate_size": 256}
MIDDLE: dict[str, Any] = {**DECODER, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 176}

Part = Literal["quick", "dev", "held-out", "second", "third", "fourth", "fifth"]
QUICK = "quick"
PARTS, TUNED_ON = tuple(part for part in get_args(Part) if part != QUICK), (QUICK, "dev")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs with one model size on one set of data.

    `part`: `quick`, a look whether everything works; `dev`, whose results thresholds are tuned on; `held-out`, `second`,
    `third`, `fourth` and `fifth`, for later readings, each with frozen thresholds. `source`: a key of `group_data.SOURCES`;
    `data_seed`, `languages`: of its rows. `shapes`: names of the shapes of stages. `steps`: updates of healthy runs, where
    they are not those of the shape. `start_steps`: updates of start models, by name.
    """

    name: str
    part: Part
    model: Mapping[str, Any]
    shapes: tuple[str, ...]
    source: str = "world"
    data_seed: int = 1
    languages: str = "zh+en"
    vocab_size: int = 800
    steps: Mapping[str, int] = field(default_factory=dict)
    start_steps: Mapping[str, int] = field(default_factory=lambda: {"base": 500, "half": 150, "chat": 300})


ONE_LANGUAGE = ("pretrain", "sft", "dpo", "grpo")
OTHER_STAGES = ("kto", "reward", "seq2seq")
REAL_SHAPES, REAL_VOCABULARY = ("pretrain", "sft", "lora", "dpo"), 2000
REAL_STEPS = {"pretrain": 500, "sft": 100}  # real text is learned more slowly
REAL: dict[str, Any] = {"shapes": REAL_SHAPES, "vocab_size": REAL_VOCABULARY, "steps": REAL_STEPS}
DECODER_SHAPES = ("pretrain", "moe", "sft", "lora", "dpo", "grpo")
DEEPER: dict[str, Any] = {**DECODER, "hidden_size": 80, "num_hidden_layers": 4, "intermediate_size": 208}
WIDER: dict[str, Any] = {**DECODER, "hidden_size": 112, "num_hidden_layers": 2, "intermediate_size": 304}
NARROW: dict[str, Any] = {**DECODER, "hidden_size": 56, "num_hidden_layers": 3, "intermediate_size": 152}
SHORT: dict[str, Any] = {**DECODER, "hidden_size": 104, "num_hidden_layers": 2, "intermediate_size": 280}
TINY: dict[str, Any] = {**DECODER, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 96}
GROUPS: dict[str, Group] = {
    one.name: one
    for one in (
        Group(
            name="quick",
            part="quick",
            model=TINY,
            shapes=("pretrain", "sft"),
            source="small world",
            data_seed=21,
            steps={"pretrain": 60, "sft": 40},
            start_steps={"base": 60, "half": 40},
        ),
        Group(name="dev", part="dev", model=SMALL, shapes=DECODER_SHAPES),
        Group(name="size", part="held-out", model=LARGER, shapes=DECODER_SHAPES, data_seed=2),
        Group(name="data", part="held-out", model=MIDDLE, source="instructions", **REAL),
        Group(name="language", part="held-out", model=SMALL, shapes=ONE_LANGUAGE, data_seed=3, languages="zh"),
        Group(name="stages", part="held-out", model=SMALL, shapes=OTHER_STAGES, data_seed=4),
        Group(name="size-2", part="second", model=DEEPER, shapes=DECODER_SHAPES, data_seed=12),
        Group(name="data-2", part="second", model=MIDDLE, source="questions", **REAL),
        Group(name="language-2", part="second", model=SMALL, shapes=ONE_LANGUAGE, data_seed=13, languages="en"),
        Group(name="stages-2", part="second", model=MIDDLE, shapes=OTHER_STAGES, data_seed=14),
        Group(name="stages-3", part="second", model=LARGER, shapes=OTHER_STAGES, data_seed=24),
        Group(name="size-3", part="third", model=WIDER, shapes=DECODER_SHAPES, data_seed=31),
        Group(name="data-3", part="third", model=LARGER, source="questions", data_seed=32, **REAL),
        Group(name="language-3", part="third", model=MIDDLE, shapes=ONE_LANGUAGE, data_seed=33, languages="zh"),
        Group(name="stages-4", part="third", model=SMALL, shapes=OTHER_STAGES, data_seed=34),
        Group(name="size-4", part="fourth", model=NARROW, shapes=DECODER_SHAPES, data_seed=41),
        Group(name="data-4", part="fourth", model=DEEPER, source="questions", data_seed=42, **REAL),
        Group(name="language-4", part="fourth", model=MIDDLE, shapes=ONE_LANGUAGE, data_seed=43, languages="en"),
        Group(name="stages-5", part="fourth", model=WIDER, shapes=OTHER_STAGES, data_seed=44),
        Group(name="size-5", part="fifth", model=SHORT, shapes=DECODER_SHAPES, data_seed=51),
        Group(name="data-5", part="fifth", model=NARROW, source="articles", data_seed=52, **REAL),
        Group(name="language-5", part="fifth", model=NARROW, shapes=ONE_LANGUAGE, data_seed=53, languages="zh"),
        Group(name="stages-6", part="fifth", model=DEEPER, shapes=OTHER_STAGES, data_seed=54),
    )
}

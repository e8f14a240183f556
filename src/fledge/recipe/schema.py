"""The recipe: every key that fledge reads, its type, its default and its bounds.

A key that is not here is an error. Names of model sizes follow the Hugging Face configuration files.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from fledge.errors import FledgeError
from fledge.recipe.units import Length, memory_size, steps_or_share
from fledge.recipe.units import share as as_share

Share = Annotated[float, Field(ge=0, lt=1)]
Percent = Annotated[Share, BeforeValidator(as_share)]
Positive = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """A part of the recipe: frozen, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TokenizerConfig(Section):
    """Train byte-level BPE on the training text of all stages, or load a directory or tokenizer.json from `path`."""

    path: str | None = None
    vocab_size: Annotated[int, Field(ge=300, le=1_000_000)] = 6400
    template: Literal["auto", "chatml", "inst", "tokenizer"] = Field(
        default="auto", description="chat template: the tokenizer's own if it has one, else ChatML"
    )


class MoeConfig(Section):
    """Mixture of experts: each block's feed-forward network becomes `experts` of them, `top_k` active per token.

    Shared experts are active for every token and form one network of `shared_experts` × `intermediate_size`.
    """

    experts: Positive
    top_k: Positive
    shared_experts: Annotated[int, Field(ge=0)] = 0
    normalise_top_k: bool = Field(default=True, description="make the weights of a token's experts sum to 1")
    balance: Literal["loss", "bias"] = Field(
        default="loss", description="keep the load even by a loss, or by a bias on the choice of experts and no loss"
    )
    balance_weight: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.01, description="weight of the load-balancing loss (Fedus et al. 2022); read with balance: loss"
    )
    z_weight: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.001, description="weight of the squared log-sum-exp of the router's logits (Zoph et al. 2022)"
    )
    bias_rate: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.001, description="change of a bias after each update (Wang et al. 2024); read with balance: bias"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "MoeConfig":
        if self.top_k > self.experts:
            raise ValueError(f"top_k {self.top_k} is more than the {self.experts} experts")
        if self.top_k == 1 and self.experts > 1 and self.normalise_top_k:
            raise ValueError("top_k 1 needs normalise_top_k: false; else every weight is 1 and the router learns nothing")
        unread = "bias_rate" if self.balance == "loss" else "balance_weight"
        if getattr(self, unread) != type(self).model_fields[unread].default:
            raise ValueError(f"{unread} is not read with balance: {self.balance}; leave it out")
        return self


class ModelConfig(Section):
    """The native decoder, or a model directory to start from (`path`), whose own sizes then hold."""

    path: str | None = None
    hidden_size: Positive = 512
    num_hidden_layers: Positive = 8
    num_attention_heads: Positive = 8
    num_key_value_heads: Positive = 2
    intermediate_size: Positive = 1408
    max_position_embeddings: Positive = 512
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    rms_norm_eps: Annotated[float, Field(gt=0)] = 1e-6
    qk_norm: bool = False
    tie_word_embeddings: bool = True
    dropout: Share = 0.0
    initializer_range: Annotated[float, Field(gt=0)] = 0.02
    moe: MoeConfig | None = None

    @model_validator(mode="after")
    def _heads(self) -> "ModelConfig":
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError("hidden_size / num_attention_heads must be even: RoPE rotates pairs of dimensions")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        return self

    @model_validator(mode="after")
    def _has_a_layout(self) -> "ModelConfig":
        """A mixture is saved as one of the two architectures of transformers that have its parts."""
        if self.moe is not None and self.moe.shared_experts == 0 and not self.qk_norm:
            raise ValueError(
                "a mixture without shared experts is saved as Qwen3-MoE, which normalises queries and keys: set qk_norm: true"
            )
        if self.moe is not None and self.moe.shared_experts and self.qk_norm:
            raise ValueError(
                "a mixture with shared experts is saved as Qwen2-MoE, which does not normalise queries and keys: "
                "set qk_norm: false"
            )
        return self


def _word_or_number(value: object) -> str:
    return "word" if isinstance(value, str) and not value.isdigit() else "number"


Blocks = Annotated[
    Annotated[Literal["none", "full"], Tag("word")] | Annotated[Positive, Tag("number")], Discriminator(_word_or_number)
]
Rows = Annotated[Annotated[Literal["auto"], Tag("word")] | Annotated[Positive, Tag("number")], Discriminator(_word_or_number)]


class MachineConfig(Section):
    """Where and how to compute. `auto` is decided by a probe on this machine and recorded with the run."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = Field(
        default="auto", description="dtype of activations and products; tf32 and fp16 need a GPU to pay"
    )
    compile: Literal["auto"] | bool = "auto"
    attention: Literal["auto", "blocked", "sdpa", "flex", "varlen"] = "auto"
    checkpointing: Blocks = Field(
        default="none",
        description="activation checkpointing: blocks that are computed again in the backward pass instead of kept; "
        "n: every n-th, full: all",
    )
    memory: Annotated[int, BeforeValidator(memory_size), Field(gt=0)] | None = Field(
        default=None, description="what training may take, e.g. 6 GiB, for batch.micro: auto; null: nine tenths of what is free"
    )
    threads: Positive | None = None
    probe: Literal["auto", "again"] = Field(
        default="auto", description="auto: what was measured before on this machine is not measured again"
    )
    workers: Positive | None = Field(
        default=None, description="processes that prepare data; null: one a core for large data, none for small"
    )

    @property
    def recomputed(self) -> int:
        """Every how many blocks one is computed again: 0 none, 1 all."""
        if isinstance(self.checkpointing, int):
            return self.checkpointing
        return 1 if self.checkpointing == "full" else 0


Column = Literal[
    "text", "prompt", "query", "response", "system", "history", "messages", "tools", "chosen", "rejected", "ranked", "label"
]
Role = Literal["system", "user", "assistant", "tool", "call"]


class Source(Section):
    """Rows to read: a file, folder or glob (`path`), an entry of a dataset_info.json (`registry` and `name`), or a
    dataset of a hub (`hub`). What cannot be recognised is named by `columns`, `turns` and `roles`.

    `share`, `ratio`, `max_rows`, `max_tokens` and `repeat` say how much of it one epoch takes; which rows those are is
    drawn afresh for each epoch.
    """

    path: str | None = None
    registry: str | None = Field(default=None, description="a dataset_info.json; `name` is the entry, or several: a,b")
    hub: str | None = Field(default=None, description="dataset name on the Hugging Face hub (extra `hub`)")
    subset: str | None = Field(default=None, description="hub: configuration of the dataset")
    split: str | None = Field(default=None, description="hub: split of the dataset; null: train")
    name: str | None = None
    columns: dict[Column, str | list[str]] = {}
    turns: dict[Literal["role", "content"], str] = Field(default={}, description="keys of a turn: role, content")
    roles: dict[str, Role] = Field(default={}, description="names of roles in the file, and what they mean here")
    documents: Literal["line", "paragraph", "file"] = Field(default="line", description="what one document is in a .txt file")
    encoding: str = Field(default="auto", description="auto: UTF-8, else the encoding that a byte order mark or the text shows")
    first_rows: Positive | None = Field(default=None, description="read only so many rows")
    share: Annotated[float, BeforeValidator(as_share), Field(gt=0, le=1)] | None = Field(
        default=None, description="share of an epoch's tokens that this source gives"
    )
    ratio: Annotated[float, BeforeValidator(as_share), Field(gt=0, le=1)] | None = Field(
        default=None, description="share of the source's rows that an epoch takes"
    )
    max_rows: Positive | None = Field(default=None, description="most rows that an epoch takes")
    max_tokens: Positive | None = Field(default=None, description="most tokens that an epoch takes")
    repeat: Annotated[float, Field(gt=0, le=1000)] = Field(default=1.0, description="times that an epoch takes each row")

    @model_validator(mode="after")
    def _consistent(self) -> "Source":
        named = [key for key in ("path", "registry", "hub") if getattr(self, key) is not None]
        if len(named) != 1:
            raise ValueError(f"a source has one of path, registry and hub; this one has {' and '.join(named) or 'none'}")
        if self.registry and not self.name:
            raise ValueError("registry needs a name: the entry of the dataset_info.json")
        if (self.subset or self.split) and not self.hub:
            raise ValueError("subset and split belong to hub")
        if self.share is not None and (self.ratio or self.max_rows or self.max_tokens or self.repeat != 1):
            raise ValueError("share decides how much is taken: leave out ratio, max_rows, max_tokens and repeat")
        for role in ("messages", "chosen", "rejected", "ranked", "tools", "history", "label"):
            if isinstance(self.columns.get(role), list):
                raise ValueError(f"columns.{role} names one column, not a list")
        return self

    @property
    def mixed(self) -> bool:
        """Whether an epoch takes anything else than each row once."""
        return self.repeat != 1 or any((self.share, self.ratio, self.max_rows, self.max_tokens))


def _as_sources(value: object) -> object:
    if isinstance(value, str | dict):
        value = [value]
    if isinstance(value, list):
        return [{"path": item} if isinstance(item, str) else item for item in value]
    return value


Sources = Annotated[list[Source], BeforeValidator(_as_sources)]
ShareOrSources = Annotated[
    Annotated[Share, Tag("share")] | Annotated[Sources, Tag("sources")],
    Discriminator(lambda value: "share" if isinstance(value, int | float) else "sources"),
]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


class CleanConfig(Section):
    """What is mended in each row's text, and which rows are left out. Every change and every row is accounted for."""

    unicode: bool = Field(default=True, description="Unicode NFC")
    whitespace: bool = Field(default=True, description="control characters, line ends, runs of blank lines")
    mojibake: bool = Field(default=True, description="repair text decoded in the wrong encoding, where that is suspected")
    html: Literal["auto"] | bool = Field(default="auto", description="strip markup; auto: in documents, not in conversations")
    min_tokens: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="leave out shorter documents; null: 10 for pretraining, 0 else"
    )
    languages: Annotated[list[str], BeforeValidator(_as_list)] | None = Field(
        default=None, description="leave out rows in other languages than these, e.g. [zh, en]"
    )
    exact_duplicates: bool = Field(default=True, description="leave out rows equal to an earlier one")
    near_duplicates: Annotated[float, BeforeValidator(as_share), Field(gt=0, le=1)] | None = Field(
        default=None, description="leave out rows whose n-grams overlap an earlier row's at least so much (Jaccard), e.g. 0.8"
    )
    contamination: bool = Field(
        default=True, description="leave out training rows that hold a question or document of a validation or evaluation file"
    )
    evaluation: Sources = Field(default=[], description="files that must not be trained on, beside the validation files")


class AugmentConfig(Section):
    """Variation of conversations; all off by default."""

    tail_truncation: Percent = Field(default=0.0, description="share of conversations that end after an earlier round")
    noise: Percent = Field(default=0.0, description="share of conversations whose questions get typing errors")
    noise_rate: Annotated[float, BeforeValidator(as_share), Field(gt=0, le=0.5)] = Field(
        default=0.03, description="share of characters changed there"
    )


def _shorthand(value: object) -> object:
    """`data: {registry: f, name: n}` and `data: {path: p}` name one training source."""
    keys = set(Source.model_fields)
    if isinstance(value, dict) and "train" not in value and {"path", "registry", "hub"} & set(value):
        inside = {key: item for key, item in value.items() if key in keys}
        return {"train": [inside], **{key: item for key, item in value.items() if key not in keys}}
    return value


class DataConfig(Section):
    """What a stage reads: training sources, and validation as a share of them or as sources of its own."""

    train: Annotated[Sources, Field(min_length=1)]
    validation: Annotated[ShareOrSources, BeforeValidator(as_share)] = 0.02
    context: Annotated[int, Field(ge=8)] = 512
    system: str | None = Field(default=None, description="system prompt for conversations that bring none")
    clean: CleanConfig = CleanConfig()
    long_conversations: Literal["recent", "truncate", "split"] = Field(
        default="recent",
        description="conversations longer than the context: keep the most recent whole turns, cut on the right, or make "
        "several examples of whole turns",
    )
    train_on: Literal["all", "last"] = Field(default="all", description="which assistant turns are trained")
    augment: AugmentConfig = AugmentConfig()
    max_dropped: Annotated[float, BeforeValidator(as_share), Field(ge=0, le=1)] | None = Field(
        default=None, description="stop when a larger share of a source's rows is left out, e.g. 1%"
    )

    @model_validator(mode="after")
    def _shares(self) -> "DataConfig":
        total = sum(source.share or 0 for source in self.train)
        rest = [source for source in self.train if source.share is None]
        if total > 1 + 1e-9 or (total and rest and total > 1 - 1e-9):
            raise ValueError(f"the shares of the training sources add up to {total:.4g}: nothing is left for the others")
        if total and not rest and abs(total - 1) > 1e-6:
            raise ValueError(
                f"all training sources have a share, and these add up to {total:.1%}, not to 100%: leave one without a share"
            )
        return self


def _whole_or_share(value: float, name: str) -> float:
    if value >= 1 and value != int(value):
        raise ValueError(f"{name} {value} is neither a whole number of steps nor a share below 1")
    return value


class BatchWarmupConfig(Section):
    """Smaller batches at the beginning: the accumulation grows from `start` to its full count, one micro-batch at a
    time, in equal parts of `over`. The learning rate is not scaled with it."""

    start: Positive = Field(default=1, description="accumulation of the first update")
    over: Annotated[float, BeforeValidator(steps_or_share), Field(gt=0)] = Field(
        default=0.1, description="whole number: steps; below 1 or with %: share of all steps"
    )

    @field_validator("over")
    @classmethod
    def _whole(cls, value: float) -> float:
        return _whole_or_share(value, "over")


class BatchConfig(Section):
    """Rows of `context` tokens (of a preference: twice as many): `micro` at a time on the device, `accumulation` times before
    each update. Or `tokens` for each update, which `micro` divides; `micro: auto` is as large as memory allows."""

    micro: Rows = 16
    accumulation: Positive = 1
    tokens: Positive | None = Field(
        default=None, description="positions of one update, in place of accumulation: a whole number of rows"
    )
    warmup: BatchWarmupConfig | None = Field(default=None, description="smaller batches at the beginning; null: none")

    @model_validator(mode="before")
    @classmethod
    def _as_large_as_fits(cls, value: object) -> object:
        """`tokens` alone says how much an update reads, and leaves to memory how much of it at a time."""
        return {"micro": "auto", **value} if isinstance(value, dict) and value.get("tokens") is not None else value

    @property
    def rows(self) -> int:
        """Rows of one micro-batch. ValueError while it is `auto`."""
        if self.micro == "auto":
            raise ValueError("batch.micro: not chosen yet")
        return self.micro

    def window(self, row_length: int) -> int:
        """Rows of one full update, whatever fits at a time. FledgeError where `tokens` are no whole number of rows."""
        if self.tokens is None:
            return self.rows * self.accumulation
        rows, rest = divmod(self.tokens, row_length)
        if rest or not rows:
            nearest = [f"{count * row_length:,}" for count in (rows, rows + 1) if count]
            raise FledgeError(
                f"{self.tokens:,} tokens are no whole number of rows of {row_length:,}",
                where="batch.tokens",
                hint=f"write {' or '.join(nearest)}",
            )
        return rows

    @model_validator(mode="after")
    def _one_way(self) -> "BatchConfig":
        if self.tokens is not None and "accumulation" in self.model_fields_set and self.accumulation != 1:
            raise ValueError("tokens and accumulation both say how much one update reads: leave one of them out")
        if self.micro == "auto" and self.tokens is None:
            raise ValueError("micro: auto needs tokens, the size of an update that stays the same whatever fits into memory")
        if self.tokens is not None and self.warmup is not None:
            raise ValueError("warmup counts micro-batches: write micro and accumulation in place of tokens")
        return self

    @model_validator(mode="after")
    def _grows(self) -> "BatchConfig":
        if self.warmup is not None and self.warmup.start >= self.accumulation:
            raise ValueError(f"warmup.start {self.warmup.start} is not below the accumulation {self.accumulation} it grows to")
        return self


def _auto_or_number(value: object) -> str:
    return "auto" if value == "auto" else "number"


Auto = Annotated[Literal["auto"], Tag("auto")]
Rate = Annotated[Annotated[float, Field(gt=0), Tag("number")] | Auto, Discriminator(_auto_or_number)]
Betas = Annotated[Annotated[tuple[Share, Share], Tag("number")] | Auto, Discriminator(_auto_or_number)]
Decay = Annotated[Annotated[float, Field(ge=0), Tag("number")] | Auto, Discriminator(_auto_or_number)]


class OptimizerConfig(Section):
    """AdamW; AdamW with its state in 8 bits; or Muon for the matrices of the blocks with AdamW for the rest, at one learning
    rate. `auto`, the default of pretraining, is derived from width, batch and length; the plan shows how."""

    name: Literal["adamw", "muon", "adamw8bit"] = "adamw"
    lr: Rate = 5e-4
    betas: Betas = (0.9, 0.95)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Decay = 0.1
    decay: Literal["matrices", "everything"] = Field(
        default="matrices", description="what decays: matrices of the blocks and the head, or also norms, biases and embeddings"
    )
    clip: Annotated[float, Field(gt=0)] | None = Field(default=1.0, description="largest gradient norm; null: no clipping")

    @property
    def automatic(self) -> list[str]:
        """The keys that are still to be derived."""
        return [key for key in ("lr", "betas", "weight_decay") if getattr(self, key) == "auto"]

    def numbers(self) -> tuple[float, tuple[float, float], float]:
        """Learning rate, betas and weight decay. ValueError while one of them is `auto`."""
        if self.lr == "auto" or self.betas == "auto" or self.weight_decay == "auto":
            raise ValueError(f"{', '.join(self.automatic)}: not derived yet")
        return self.lr, self.betas, self.weight_decay


def _over(**defaults: object) -> Callable[[object], object]:
    """Lays an optimizer section over the defaults of its kind, so that naming one key does not reset the others."""
    return lambda value: {**defaults, **value} if isinstance(value, dict) else value


def _explicit(value: OptimizerConfig) -> OptimizerConfig:
    if value.automatic:
        raise ValueError(f"{', '.join(value.automatic)}: auto is derived for pretraining only; write a number")
    return value


_AUTO: dict[str, Any] = {"name": "muon", "lr": "auto", "betas": "auto", "weight_decay": "auto"}
_SFT: dict[str, Any] = {"name": "adamw", "lr": 2e-5, "betas": (0.9, 0.95), "weight_decay": 0.01}
_PREFERENCE: dict[str, Any] = {**_SFT, "lr": 5e-6}
PretrainOptimizer = Annotated[OptimizerConfig, BeforeValidator(_over(**_AUTO))]
SftOptimizer = Annotated[OptimizerConfig, BeforeValidator(_over(**_SFT)), AfterValidator(_explicit)]
PreferenceOptimizer = Annotated[OptimizerConfig, BeforeValidator(_over(**_PREFERENCE)), AfterValidator(_explicit)]


def _share_or_number(value: object) -> str:
    return "share" if isinstance(value, str) and value.strip().endswith("%") else "number"


def _share_of_rate(value: str) -> str:
    part = as_share(value)
    if not isinstance(part, float) or not 0 <= part <= 1:
        raise ValueError(f"the share '{value}' must lie between 0% and 100%")
    return value


LowestRate = Annotated[
    Annotated[float, Field(ge=0), Tag("number")] | Annotated[str, AfterValidator(_share_of_rate), Tag("share")],
    Discriminator(_share_or_number),
]


class ScheduleConfig(Section):
    """Learning rate over the steps: warm-up, then the named shape down to `min_lr`."""

    name: Literal["cosine", "wsd", "linear", "constant", "onecycle"] = "cosine"
    warmup: Annotated[float, BeforeValidator(steps_or_share), Field(ge=0)] = Field(
        default=0.02, description="whole number: steps; below 1 or with %: share of all steps"
    )
    min_lr: LowestRate = Field(
        default=0.0, description="rate of the last step: a number, or with % a share of optimizer.lr, such as 10%"
    )
    decay: Annotated[float, BeforeValidator(as_share), Field(gt=0, le=1)] = Field(
        default=0.2, description="wsd only: share of the steps that the final decay takes"
    )
    decay_shape: Literal["linear", "sqrt"] = Field(default="linear", description="wsd only: falls as 1 − p or as 1 − √p")
    div_factor: Annotated[float, Field(ge=1)] = Field(default=25.0, description="onecycle only: the first rate is lr ÷ this")
    final_div_factor: Annotated[float, Field(ge=1)] | None = Field(
        default=None, description="onecycle only: the last rate is the first ÷ this; null: min_lr"
    )

    @field_validator("warmup")
    @classmethod
    def _whole(cls, value: float) -> float:
        return _whole_or_share(value, "warmup")

    @model_validator(mode="after")
    def _belongs(self) -> "ScheduleConfig":
        owners = {"decay": "wsd", "decay_shape": "wsd", "div_factor": "onecycle", "final_div_factor": "onecycle"}
        for key, owner in owners.items():
            if self.name != owner and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} belongs to the schedule {owner}; this one is {self.name}")
        if self.final_div_factor is not None and self.min_lr != 0:
            raise ValueError("final_div_factor and min_lr both name the last rate: leave one of them out")
        return self


class AveragingConfig(Section):
    """A moving average of the weights, which the stage's model gets at its end. Off without `decay`."""

    decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="share of the average that each update keeps, such as 0.999; null: no averaging"
    )
    start: Percent = Field(default=0.0, description="share of the steps before the average begins")

    @model_validator(mode="after")
    def _used(self) -> "AveragingConfig":
        if self.decay is None and self.start:
            raise ValueError("start says when averaging begins, but without decay there is none")
        return self


class EvaluationConfig(Section):
    """Validation during training, and what is measured before and after the stage."""

    every: Positive | None = Field(default=None, description="steps between evaluations; null: ten times a stage")
    max_rows: Positive = Field(default=64, description="most packed rows of validation data used")


class CheckpointConfig(Section):
    """Saved states. The newest `keep` are kept, and the best one always."""

    every: Positive | None = Field(default=None, description="steps between checkpoints; null: as often as evaluations")
    keep: Positive = 2


class EarlyStopConfig(Section):
    """Stop when validation loss has not improved by `threshold` for `patience` evaluations, or reached `target_loss`."""

    patience: Positive | None = None
    threshold: Annotated[float, Field(ge=0)] = 0.0
    target_loss: Annotated[float, Field(gt=0)] | None = None


class StageBase(Section):
    """What every stage has."""

    start: str | None = Field(default=None, description="model directory to start from; null: the stage before")
    data: Annotated[DataConfig, BeforeValidator(_shorthand)]
    length: str = "1 epochs"
    batch: BatchConfig = BatchConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    averaging: AveragingConfig = AveragingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    early_stop: EarlyStopConfig = EarlyStopConfig()
    keep: Literal["last", "best"] = Field(default="last", description="which checkpoint the next stage starts from")

    @field_validator("length")
    @classmethod
    def _length(cls, value: str) -> str:
        Length.parse(value)
        return value

    @model_validator(mode="after")
    def _minimum(self) -> "StageBase":
        low, high = self.schedule.min_lr, self.optimizer.lr  # a share never is above; `auto` is checked when it is known
        if not isinstance(low, str) and not isinstance(high, str) and low > high:
            raise ValueError(f"schedule.min_lr {self.schedule.min_lr} is above optimizer.lr {self.optimizer.lr}")
        return self


class PretrainStage(StageBase):
    """Next-token prediction on plain text."""

    kind: Literal["pretrain"]
    label_smoothing: Share = 0.0
    optimizer: PretrainOptimizer = OptimizerConfig(**_AUTO)


class SftStage(StageBase):
    """Supervised fine-tuning on conversations: only assistant turns and their end tokens are trained."""

    kind: Literal["sft"]
    label_smoothing: Share = 0.0
    optimizer: SftOptimizer = OptimizerConfig(**_SFT)


class PreferenceStage(StageBase):
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7) with a frozen reference model."""

    kind: Literal["preference"]
    loss: Literal["sigmoid"] = "sigmoid"
    beta: Annotated[float, Field(gt=0)] = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(default=0.0, description="cDPO: share of flipped labels")
    sft_weight: Annotated[float, Field(ge=0)] = Field(default=0.0, description="weight of the chosen answers' own loss")
    reference: Literal["precomputed", "live"] = "precomputed"
    optimizer: PreferenceOptimizer = OptimizerConfig(**_PREFERENCE)


Stage = Annotated[PretrainStage | SftStage | PreferenceStage, Field(discriminator="kind")]


class SamplesConfig(Section):
    """Fixed prompts answered before and after every stage, by greedy decoding."""

    prompts: list[str] = []
    texts: list[str] = Field(default=[], description="beginnings to continue after pretraining")
    max_new_tokens: Positive = 64


class LoggingConfig(Section):
    """What is written while training. events.jsonl is always written."""

    every: Positive = Field(
        default=10,
        description="steps between lines on the console, and between measurements of update sizes and gradient noise",
    )
    tensorboard: bool = False


class Recipe(Section):
    """One run: a tokenizer, a model and its stages, in order."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    output: str = "runs"
    preset: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    built: str | None = Field(default=None, description="directory of `fledge data build` to train from; null: builds its own")
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    machine: MachineConfig = MachineConfig()
    stages: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")], Stage]
    samples: SamplesConfig = SamplesConfig()
    logging: LoggingConfig = LoggingConfig()

    @field_validator("stages")
    @classmethod
    def _stages(cls, value: dict[str, "Stage"]) -> dict[str, "Stage"]:
        if not value:
            raise ValueError("a recipe needs at least one stage")
        reserved = {"tokenizer"} & set(value)
        if reserved:
            raise ValueError(f"a stage cannot be called '{reserved.pop()}': the run keeps its tokenizer there")
        return value

    @model_validator(mode="after")
    def _context(self) -> "Recipe":
        if self.model.path is None:
            for name, stage in self.stages.items():
                if stage.start is not None:
                    break
                if stage.data.context > self.model.max_position_embeddings:
                    raise ValueError(
                        f"stages.{name}.data.context {stage.data.context} is longer than "
                        f"model.max_position_embeddings {self.model.max_position_embeddings}"
                    )
        return self

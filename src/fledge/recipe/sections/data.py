"""What a stage reads: sources, cleaning, augmentation, and how conversations become examples."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from fledge.recipe.sections.base import ConfigModel, Percent, Positive, Share
from fledge.recipe.units import share as as_share

Column = Literal[
    "text", "prompt", "query", "response", "system", "history", "messages", "tools", "chosen", "rejected", "ranked", "label"
]
Role = Literal["system", "user", "assistant", "tool", "call"]


class Source(ConfigModel):
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
    max_samples: Positive | None = Field(default=None, description="read only so many rows")
    token_fraction: Annotated[float, BeforeValidator(as_share), Field(gt=0, le=1)] | None = Field(
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
        if self.token_fraction is not None and (self.ratio or self.max_rows or self.max_tokens or self.repeat != 1):
            raise ValueError("share decides how much is taken: leave out ratio, max_rows, max_tokens and repeat")
        for role in ("messages", "chosen", "rejected", "ranked", "tools", "history", "label"):
            if isinstance(self.columns.get(role), list):
                raise ValueError(f"columns.{role} names one column, not a list")
        return self

    @property
    def mixed(self) -> bool:
        """Whether an epoch takes anything else than each row once."""
        return self.repeat != 1 or any((self.token_fraction, self.ratio, self.max_rows, self.max_tokens))


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


class CleanConfig(ConfigModel):
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
    decontaminate: bool = Field(
        default=True, description="leave out training rows that hold a question or document of a validation or evaluation file"
    )
    decontaminate_against: Sources = Field(
        default=[], description="files that must not be trained on, beside the validation files"
    )


class AugmentConfig(ConfigModel):
    """Variation of conversations; all off by default."""

    drop_last_turns: Percent = Field(default=0.0, description="share of conversations that end after an earlier round")
    noise: Percent = Field(default=0.0, description="share of conversations whose questions get typing errors")
    noise_rate: Annotated[float, BeforeValidator(as_share), Field(gt=0, le=0.5)] = Field(
        default=0.03, description="share of characters changed there"
    )


def one_source(value: object) -> object:
    """`data: {registry: f, name: n}` and `data: {path: p}` name one training source."""
    keys = set(Source.model_fields)
    if isinstance(value, dict) and "train" not in value and {"path", "registry", "hub"} & set(value):
        inside = {key: item for key, item in value.items() if key in keys}
        return {"train": [inside], **{key: item for key, item in value.items() if key not in keys}}
    return value


class DataConfig(ConfigModel):
    """What a stage reads: training sources, and validation as a share of them or as sources of its own."""

    train: Annotated[Sources, Field(min_length=1)]
    validation: Annotated[ShareOrSources, BeforeValidator(as_share)] = 0.02
    max_seq_len: Annotated[int, Field(ge=8)] = 512
    system: str | None = Field(default=None, description="system prompt for conversations that bring none")
    clean: CleanConfig = CleanConfig()
    truncation: Literal["keep_recent", "keep_start", "split"] = Field(
        default="keep_recent",
        description="conversations longer than the context: keep the most recent whole turns, cut on the right, or make "
        "several examples of whole turns",
    )
    train_on_turns: Literal["all", "last"] = Field(default="all", description="which assistant turns are trained")
    augment: AugmentConfig = AugmentConfig()
    max_drop_fraction: Annotated[float, BeforeValidator(as_share), Field(ge=0, le=1)] | None = Field(
        default=None, description="stop when a larger share of a source's rows is left out, e.g. 1%"
    )

    @model_validator(mode="after")
    def _shares(self) -> "DataConfig":
        total = sum(source.token_fraction or 0 for source in self.train)
        rest = [source for source in self.train if source.token_fraction is None]
        if total > 1 + 1e-9 or (total and rest and total > 1 - 1e-9):
            raise ValueError(f"the shares of the training sources add up to {total:.4g}: nothing is left for the others")
        if total and not rest and abs(total - 1) > 1e-6:
            raise ValueError(
                f"all training sources have a share, and these add up to {total:.1%}, not to 100%: leave one without a share"
            )
        return self

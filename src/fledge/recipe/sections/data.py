"""The data of a stage: sources, cleaning, augmentation, and how conversations become examples."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from fledge.recipe.sections.base import ConfigModel, Fraction, FractionOrPercent, PathText, Positive
from fledge.recipe.units import fraction as as_fraction

Column = Literal[
    "text", "prompt", "query", "response", "system", "history", "messages", "tools", "chosen", "rejected", "ranked", "label",
    "margin", "weight",
]  # fmt: skip
Role = Literal["system", "user", "assistant", "tool", "call"]


class Source(ConfigModel):
    """A source of rows: a file, folder or glob (`path`), an entry of a dataset_info.json (`registry` and `name`), or a dataset
    of the Hugging Face hub (`hub`). Formats that are not recognized are described by `columns`, `turns` and `roles`.

    `token_fraction`, `ratio`, `max_rows`, `max_tokens` and `repeat` determine how much of the source one epoch uses; the rows
    are drawn again for each epoch.
    """

    path: PathText | None = None
    registry: PathText | None = Field(
        default=None, description="path of a dataset_info.json; `name` is the entry, or several: a,b"
    )
    hub: str | None = Field(default=None, description="name of a dataset on the Hugging Face hub (needs the extra `hub`)")
    subset: str | None = Field(default=None, description="with hub: configuration of the dataset")
    split: str | None = Field(default=None, description="with hub: split of the dataset; null: train")
    name: str | None = None
    columns: dict[Column, str | list[str]] = {}
    turns: dict[Literal["role", "content", "weight", "masked"], str] = Field(
        default={},
        description="names of the keys of a turn: its role, its content, its weight in the loss, whether it is masked from it",
    )
    roles: dict[str, Role] = Field(default={}, description="role names of the file, mapped to fledge's roles")
    turn_order: Literal["strict", "merge", "trim", "merge_and_trim"] = Field(
        default="strict",
        description="conversations whose roles do not alternate: strict: drop the row; merge: join turns of one role; trim: "
        "leave out turns before the first question and after the last answer",
    )
    alternating_turns: bool = Field(
        default=False, description="a list of texts is a conversation in which user and assistant speak in turn"
    )
    documents: Literal["line", "paragraph", "file"] = Field(default="line", description="unit of a document in .txt files")
    encoding: str = Field(
        default="auto",
        description="text encoding; auto: UTF-8, else the encoding recognized from a byte order mark or the text",
    )
    parse_special_tokens: bool | None = Field(
        default=None, description="as data.parse_special_tokens, for this source; null: as there"
    )
    max_samples: Positive | None = Field(default=None, description="read only the first rows, at most this many")
    token_fraction: Annotated[float, BeforeValidator(as_fraction), Field(gt=0, le=1)] | None = Field(
        default=None, description="fraction of the tokens of an epoch that come from this source"
    )
    ratio: Annotated[float, BeforeValidator(as_fraction), Field(gt=0, le=1)] | None = Field(
        default=None, description="fraction of the source's rows that an epoch uses"
    )
    max_rows: Positive | None = Field(default=None, description="rows that an epoch uses, at most")
    max_tokens: Positive | None = Field(default=None, description="tokens that an epoch uses, at most")
    repeat: Annotated[float, Field(gt=0, le=1000)] = Field(
        default=1.0, description="number of times that an epoch uses each row"
    )

    @model_validator(mode="after")
    def _check_consistent(self) -> "Source":
        named = [key for key in ("path", "registry", "hub") if getattr(self, key) is not None]
        if len(named) != 1:
            raise ValueError(f"a source has one of path, registry and hub; this one has {' and '.join(named) or 'none'}")
        if self.registry and not self.name:
            raise ValueError("registry needs name, an entry of the dataset_info.json")
        if (self.subset or self.split) and not self.hub:
            raise ValueError("subset and split can only be used with hub")
        if self.token_fraction is not None and (self.ratio or self.max_rows or self.max_tokens or self.repeat != 1):
            raise ValueError(
                "token_fraction determines how much of the source is used: leave out ratio, max_rows, max_tokens and repeat"
            )
        for role in ("messages", "chosen", "rejected", "ranked", "tools", "history", "label"):
            if isinstance(self.columns.get(role), list):
                raise ValueError(f"columns.{role} must name one column, not a list")
        return self

    @property
    def mixed(self) -> bool:
        """Whether an epoch uses something else than each row exactly once."""
        return self.repeat != 1 or any((self.token_fraction, self.ratio, self.max_rows, self.max_tokens))


def _as_sources(value: object) -> object:
    if isinstance(value, str | dict):
        value = [value]
    if isinstance(value, list):
        return [{"path": item} if isinstance(item, str) else item for item in value]
    return value


Sources = Annotated[list[Source], BeforeValidator(_as_sources)]
FractionOrSources = Annotated[
    Annotated[Fraction, Tag("fraction")] | Annotated[Sources, Tag("sources")],
    Discriminator(lambda value: "fraction" if isinstance(value, int | float) else "sources"),
]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


class CleanConfig(ConfigModel):
    """Cleaning of each row's text, and rows to drop. Every change and every dropped row is reported."""

    unicode: bool = Field(default=True, description="normalise to Unicode NFC")
    whitespace: bool = Field(default=True, description="normalise control characters, line ends and runs of blank lines")
    mojibake: bool = Field(default=True, description="repair text that was decoded with a wrong encoding")
    html: Literal["auto"] | bool = Field(
        default="auto", description="remove HTML markup; auto: in documents, not in conversations"
    )
    min_tokens: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="drop documents with fewer tokens; null: 10 for pretraining, else 0"
    )
    languages: Annotated[list[str], BeforeValidator(_as_list)] | None = Field(
        default=None, description="drop rows in other languages, e.g. [zh, en]; null: keep all"
    )
    exact_duplicates: bool = Field(default=True, description="drop rows equal to an earlier row")
    near_duplicates: Annotated[float, BeforeValidator(as_fraction), Field(gt=0, le=1)] | None = Field(
        default=None, description="drop rows whose n-grams have at least this Jaccard similarity with an earlier row, e.g. 0.8"
    )
    decontaminate: bool = Field(
        default=True, description="drop training rows that contain a question or document of a validation or evaluation file"
    )
    decontaminate_against: Sources = Field(
        default=[], description="evaluation files to decontaminate against, in addition to the validation files"
    )


class AugmentConfig(ConfigModel):
    """Random variation of conversations; all off by default."""

    drop_last_turns: FractionOrPercent = Field(
        default=0.0, description="fraction of conversations that end after an earlier round"
    )
    noise: FractionOrPercent = Field(default=0.0, description="fraction of conversations whose questions get typing errors")
    noise_rate: Annotated[float, BeforeValidator(as_fraction), Field(gt=0, le=0.5)] = Field(
        default=0.03, description="fraction of characters changed in these questions"
    )


def as_training_source(value: object) -> object:
    """`data: {path: p}` or `data: {registry: f, name: n}` as `data: {train: [{…}]}`; other values are returned unchanged."""
    keys = set(Source.model_fields)
    if isinstance(value, dict) and "train" not in value and {"path", "registry", "hub"} & set(value):
        source = {key: item for key, item in value.items() if key in keys}
        return {"train": [source], **{key: item for key, item in value.items() if key not in keys}}
    return value


class DataConfig(ConfigModel):
    """The data of a stage: training sources, and validation data as a fraction of their rows or as sources of its own."""

    train: Annotated[Sources, Field(min_length=1)]
    validation: Annotated[FractionOrSources, BeforeValidator(as_fraction)] = 0.02
    max_seq_len: Annotated[int, Field(ge=8)] = 512
    system: str | None = Field(default=None, description="system prompt for conversations without one")
    clean: CleanConfig = CleanConfig()
    parse_special_tokens: bool = Field(
        default=False,
        description="make tokens of control tokens such as <|im_end|> that the texts contain; false: they are spelled out",
    )
    truncation: Literal["keep_recent", "keep_start", "split"] = Field(
        default="keep_recent",
        description="for conversations longer than max_seq_len: keep the most recent whole turns, cut at the end, or make "
        "several examples of whole turns",
    )
    max_prompt_length: Positive | None = Field(
        default=None, description="preference and kto: most tokens of a prompt; the oldest turns of a longer one are left out"
    )
    max_completion_length: Positive | None = Field(
        default=None, description="preference and kto: most tokens of an answer; a longer one is cut"
    )
    train_on_turns: Literal["all", "last"] = Field(default="all", description="assistant turns that contribute to the loss")
    augment: AugmentConfig = AugmentConfig()
    max_drop_fraction: Annotated[float, BeforeValidator(as_fraction), Field(ge=0, le=1)] | None = Field(
        default=None, description="stop if a larger fraction of a source's rows is dropped, e.g. 1%"
    )

    @model_validator(mode="after")
    def _check_lengths(self) -> "DataConfig":
        for name, length in (
            ("max_prompt_length", self.max_prompt_length),
            ("max_completion_length", self.max_completion_length),
        ):
            if length is not None and length > self.max_seq_len:
                raise ValueError(f"{name} {length} is longer than max_seq_len {self.max_seq_len}")
        return self

    @model_validator(mode="after")
    def _check_token_fractions(self) -> "DataConfig":
        total = sum(source.token_fraction or 0 for source in self.train)
        others = [source for source in self.train if source.token_fraction is None]
        if total > 1 + 1e-9 or (total and others and total > 1 - 1e-9):
            raise ValueError(
                f"the token_fraction values of the training sources add up to {total:.4g}: nothing is left for the others"
            )
        if total and not others and abs(total - 1) > 1e-6:
            raise ValueError(
                f"all training sources have a token_fraction, and these add up to {total:.1%}, not to 100%: leave one without"
            )
        return self

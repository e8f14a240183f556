"""The example formats: everything that the data room knows about the kinds of stages, in one table.

A new kind of stage gets an entry in `FORMATS`. Reading, cleaning, encoding, packing, mixing, statistics and checks read the
entry instead of comparing with the name of a kind.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fledge.data.encoding.dialogues import encode_dialogues
from fledge.data.encoding.documents import encode_documents
from fledge.data.encoding.examples import Encoded, EncodingConfig
from fledge.data.encoding.feedback import encode_feedback
from fledge.data.encoding.questions import encode_questions
from fledge.data.encoding.ranked import encode_ranked
from fledge.data.parsing.items import BinaryFeedback, Conversation, Document, Item, PreferencePair
from fledge.data.parsing.rows import (
    Parser,
    parse_any,
    parse_binary_feedback,
    parse_conversation,
    parse_document,
    parse_pair_with_margin,
    parse_preference_pair,
)
from fledge.recipe.schema import BatchConfig, DataConfig, Source
from fledge.tokenizer import Tokenizer

Encoder = Callable[[Iterable[Item], Tokenizer, EncodingConfig], Iterator[Encoded]]
MIN_DOCUMENT_TOKENS = 10  # where the recipe sets no clean.min_tokens


class DataStage(Protocol):
    """The parts of a recipe's stage that the data room reads: `kind` (a key of `FORMATS`), `data` and `batch`."""

    @property
    def kind(self) -> str:
        """The kind of stage."""
        ...

    @property
    def data(self) -> DataConfig:
        """The sources of the stage and how their rows are prepared."""
        ...

    @property
    def batch(self) -> BatchConfig:
        """How many packed rows an update reads; kept for statistics of an epoch."""
        ...


def all_texts(item: Item) -> Sequence[str]:
    """All texts of an item; the default of `ExampleFormat.tokenizer_texts`."""
    return item.texts()


@dataclass(frozen=True, kw_only=True)
class ExampleFormat:
    """How the rows of one kind of stage become training examples.

    `label`: name of one example in reports.
    `parse`: function from a row to its item.
    `item_types`: types of items that belong to this format, the most typical first; they decide the kind of stage for files
    that are given without a recipe.
    `encode`: function from items to their examples, in order.
    `sequence_names`: names of the sequences of one example, in order; one empty name if an example is a single sequence.
    `has_loss_weights`: only answers are trained, so each token has a weight, which is stored. If false, every token has weight
    1 and no weight is stored.
    `splits_documents`: a sequence may continue in the next packed row and is never truncated. If false, a packed row holds
    complete examples, and `encode` truncates each to the context.
    `packs`: several examples share a packed row. If false, each has a packed row of its own.
    `is_dialogue`: the model learns to answer chat messages. If false, it learns to continue a text.
    `min_tokens`: items with fewer tokens are dropped, unless the recipe sets clean.min_tokens.
    `strips_html`: value of clean.html: auto.
    `tokenizer_texts`: function from an item to the texts to train a tokenizer on.
    `has_labels`: each example is labelled desirable or undesirable; the label is stored.
    `has_margins`: each example has a margin, by which the first sequence is to be rewarded more; it is stored.
    `halves_rows`: the two sequences of an example are computed apart, so each has one half of a packed row for itself.
    """

    label: str
    parse: Parser
    item_types: tuple[type[Item], ...]
    encode: Encoder
    sequence_names: tuple[str, ...] = ("",)
    has_loss_weights: bool = True
    splits_documents: bool = False
    packs: bool = True
    is_dialogue: bool = True
    min_tokens: int = 0
    strips_html: bool = False
    tokenizer_texts: Callable[[Item], Sequence[str]] = all_texts
    has_labels: bool = False
    has_margins: bool = False
    halves_rows: bool = False

    def __post_init__(self) -> None:
        if self.splits_documents and len(self.sequence_names) > 1:
            raise ValueError("only an example of one sequence can continue in the next packed row")

    @property
    def sequences_per_example(self) -> int:
        """Number of sequences of one example."""
        return len(self.sequence_names)

    def packed_length(self, max_seq_len: int) -> int:
        """Positions of a packed row: enough for an example whose sequences all have `max_seq_len` positions."""
        return max_seq_len * self.sequences_per_example

    def encoding_config(self, data: DataConfig, seed: int) -> EncodingConfig:
        """The encoding settings of a stage with this data."""
        min_tokens = data.clean.min_tokens
        return EncodingConfig(
            max_seq_len=data.max_seq_len,
            truncation=data.truncation,
            train_on_turns=data.train_on_turns,
            min_tokens=self.min_tokens if min_tokens is None else min_tokens,
            augment=data.augment,
            seed=seed,
            max_prompt_length=data.max_prompt_length,
            max_completion_length=data.max_completion_length,
        )


FORMATS: dict[str, ExampleFormat] = {
    "pretrain": ExampleFormat(
        label="document",
        parse=parse_document,
        item_types=(Document,),
        encode=encode_documents,
        has_loss_weights=False,
        splits_documents=True,
        is_dialogue=False,
        min_tokens=MIN_DOCUMENT_TOKENS,
        strips_html=True,
    ),
    "sft": ExampleFormat(
        label="conversation",
        parse=parse_conversation,
        item_types=(Conversation, BinaryFeedback),
        encode=encode_dialogues,
    ),
    "preference": ExampleFormat(
        label="pair",
        parse=parse_preference_pair,
        item_types=(PreferencePair,),
        encode=encode_dialogues,
        sequence_names=("chosen", "rejected"),
    ),
    "kto": ExampleFormat(
        label="answer",
        parse=parse_binary_feedback,
        item_types=(BinaryFeedback,),
        encode=encode_feedback,
        sequence_names=("answer", "unrelated answer"),
        has_labels=True,
        halves_rows=True,
    ),
    "reward": ExampleFormat(
        label="pair",
        parse=parse_pair_with_margin,
        item_types=(PreferencePair,),
        encode=encode_ranked,
        sequence_names=("chosen", "rejected"),
        has_margins=True,
    ),
    "grpo": ExampleFormat(
        label="prompt",
        parse=parse_conversation,
        item_types=(),  # files without a recipe are conversations
        encode=encode_questions,
        packs=False,
    ),
}


def parse_evaluation_row(row: Any, source: Source) -> Item:
    """The item of an evaluation row, parsed in any format, or its question alone as a document. RowError if it has none."""
    parsers = dict.fromkeys(example_format.parse for example_format in FORMATS.values())
    return parse_any(row, source, parsers)


def kind_for(item_type: type[Item]) -> str:
    """The kind of stage whose format lists this type of item earliest."""
    rank: Mapping[str, int] = {
        kind: example_format.item_types.index(item_type)
        for kind, example_format in FORMATS.items()
        if item_type in example_format.item_types
    }
    return min(rank, key=lambda kind: rank[kind])

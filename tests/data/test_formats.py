"""A new kind of stage is one entry in the table of formats: everything between its files and its batches follows from it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import pytest

from fledge.data import FORMATS, ExampleFormat, StageDataset, collect, encode, load_built_dataset
from fledge.data.analysis.check_context import CheckContext
from fledge.data.analysis.checks import findings
from fledge.data.analysis.pre_tokenization import measure
from fledge.data.analysis.stage_statistics import stage_statistics
from fledge.data.build.directory import BuildDirectory
from fledge.data.encoding.dialogues import encode_dialogues
from fledge.data.encoding.documents import encode_documents
from fledge.data.formats import kind_for
from fledge.data.parsing import items
from fledge.data.parsing.columns import RowError
from fledge.data.parsing.items import BinaryFeedback, Conversation, Dialogue, Document, PreferencePair
from fledge.data.parsing.rows import parse_binary_feedback, parse_document
from fledge.recipe.schema import Source, Stage, StageBase
from fledge.tokenizer import Message, Tokenizer
from tests.support.sources import jsonl


class LabelledStage(StageBase):
    """A stage that the package does not have: answers with a label, of which each makes one sequence."""

    kind: Literal["labelled"] = "labelled"


class RankedStage(StageBase):
    """A stage that the package does not have: a question with three answers, the best first."""

    kind: Literal["ranked"] = "ranked"


@dataclass(frozen=True)
class RankedAnswers(Dialogue):
    """A question and three answers, the best first."""

    prompt: tuple[Message, ...]
    ranking: tuple[str, ...]
    tools: str | None = None

    tag: ClassVar[str] = "ranked"
    label: ClassVar[str] = "ranked answers"

    @property
    def turns(self) -> tuple[Message, ...]:
        """The question."""
        return self.prompt

    @property
    def answers(self) -> tuple[str, ...]:
        """The three answers."""
        return self.ranking

    def map_texts(self, change: Callable[[str], str]) -> "RankedAnswers":
        """The question and its answers, changed."""
        prompt = tuple(Message(turn.role, change(turn.content)) for turn in self.prompt)
        return RankedAnswers(prompt, tuple(map(change, self.ranking)))

    def with_system(self, prompt: str) -> "RankedAnswers":
        """The question and its answers with a system prompt before them."""
        return RankedAnswers((Message("system", prompt), *self.prompt), self.ranking)

    def fields(self) -> tuple[Any, ...]:
        """The fields as plain data."""
        return [(turn.role, turn.content) for turn in self.prompt], self.ranking

    @classmethod
    def from_fields(cls, *fields: Any) -> "RankedAnswers":
        """The item with these fields."""
        prompt, answers = fields
        return cls(tuple(Message(role, content) for role, content in prompt), tuple(answers))


def parse_ranked(row: Mapping[str, Any], source: Source) -> Any:
    """A row with the columns `question` and `ranking`."""
    if len(row.get("ranking", ())) != 3:
        raise RowError("not three answers")
    return RankedAnswers((Message("user", row["question"]),), tuple(row["ranking"]))


LABELLED = ExampleFormat(
    label="labelled answer",
    parse=parse_binary_feedback,
    item_types=(BinaryFeedback,),
    encode=encode_dialogues,
)
RANKED = ExampleFormat(
    label="ranking",
    parse=parse_ranked,
    item_types=(),
    encode=encode_dialogues,
    sequence_names=("first", "second", "third"),
    tokenizer_texts=lambda item: item.texts()[:1],
)


def build(stage: StageBase, folder: Path, tokenizer: Tokenizer) -> StageDataset:
    """The stage's data, built in a folder and loaded from it."""
    encode(collect(stage, "x", 1, folder), tokenizer)  # type: ignore[arg-type]
    return load_built_dataset(folder, stage, tokenizer, 1)  # type: ignore[arg-type]


def trained_texts(dataset: StageDataset, tokenizer: Tokenizer) -> list[str]:
    """The trained text of each training sequence, in the order of the rows."""
    examples = dataset.train.examples
    sequences = (examples.sequence(index) for index in range(len(examples.offsets) - 1))
    return [tokenizer.decode(tokens[weights > 0].tolist()) for tokens, weights in sequences]


def test_every_kind_of_stage_in_a_recipe_has_a_format() -> None:
    union, _ = get_args(Stage)
    assert [get_args(stage.model_fields["kind"].annotation)[0] for stage in get_args(union)] == list(FORMATS)


def test_a_format_registered_in_the_table_is_built_without_another_line_of_code(
    tmp_path: Path, chatml: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, "labelled", LABELLED)
    rows = [{"prompt": f"What is {n} plus 1?", "response": f"It is {n + 1}.", "label": n % 3 > 0} for n in range(12)]
    file = jsonl(tmp_path / "a.jsonl", [*rows, {"prompt": "no label", "response": "a"}])
    stage = LabelledStage(data={"train": str(file), "validation": 0.2, "max_seq_len": 64})
    collected = collect(stage, "x", 1, tmp_path / "build")
    measured = measure(collected, chatml, lambda line: None)
    assert "What is 3 plus 1?" in list(collected.tokenizer_texts())
    dataset = build(stage, tmp_path / "build", chatml)

    [report] = dataset.report.sources
    assert (report.rows, report.used_rows, dict(report.dropped)) == (13, 12, {"no known column": 1})
    assert report.examples == 12 and report.validation_rows == (dataset.validation.examples.count if dataset.validation else 0)
    assert dataset.train.packed_length == 64 and dataset.train.batch(0, 1).sequences_per_example == 1
    texts = trained_texts(dataset, chatml)
    assert texts and all(text.startswith("It is ") and text.endswith(".<|im_end|>") for text in texts)

    statistics = stage_statistics(dataset, measured)
    assert statistics.sources[0].answers is not None and statistics.sources[0].answers.count == 12
    assert statistics.sources[0].tokens is not None and statistics.kind == "labelled"
    assert {name for name, results in findings(CheckContext(dataset, statistics, chatml)).items() if results} == set()
    assert BuildDirectory.open(tmp_path / "build").plan.format is LABELLED


def test_an_example_has_as_many_sequences_as_its_format_names(
    tmp_path: Path, chatml: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, "ranked", RANKED)
    monkeypatch.setitem(items.ITEM_TYPES, "ranked", RankedAnswers)
    rows = [{"question": f"{n} or {n + 1}?", "ranking": [f"best {n}", f"middle\u0000 {n}", f"worst {n}"]} for n in range(6)]
    file = jsonl(tmp_path / "a.jsonl", [*rows, {"question": "?", "ranking": ["one"]}])
    stage = RankedStage(data={"train": str(file), "validation": 0, "max_seq_len": 64, "system": "Choose."})
    assert list(collect(stage, "x", 1).tokenizer_texts()) == ["Choose."] * 6
    dataset = build(stage, tmp_path / "build", chatml)

    assert dataset.report.sources[0].changed == {"whitespace": 6}
    assert dataset.report.sources[0].examples == dataset.train.examples.count == 6
    assert dataset.train.packed_length == 3 * 64
    batch = dataset.train.batch(0, len(dataset.train))
    assert batch.sequences_per_example == 3 and batch.num_sequences == 3 * len(batch.examples) == 18
    assert trained_texts(dataset, chatml)[3:6] == ["best 1<|im_end|>", "middle 1<|im_end|>", "worst 1<|im_end|>"]
    packed = dataset.train.layout
    for row in range(len(packed)):  # the sequences of an example lie in one packed row, in their order
        sequences = packed.sequence[packed.offsets[row] : packed.offsets[row + 1]]
        assert np.array_equal(sequences.reshape(-1, 3) % 3, np.tile([0, 1, 2], (len(sequences) // 3, 1)))


def test_a_format_whose_documents_are_split_has_one_sequence_per_example() -> None:
    with pytest.raises(ValueError, match="only an example of one sequence"):
        ExampleFormat(
            label="x",
            parse=parse_document,
            item_types=(),
            encode=encode_documents,
            sequence_names=("a", "b"),
            splits_documents=True,
        )


def test_rows_belong_to_the_kind_whose_format_names_their_type_first(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {item_type: kind_for(item_type) for item_type in (Document, Conversation, PreferencePair, BinaryFeedback)}
    assert list(kinds.values()) == ["pretrain", "sft", "preference", "kto"]
    monkeypatch.delitem(FORMATS, "kto")
    assert (kind_for(BinaryFeedback), kind_for(Conversation)) == ("sft", "sft")

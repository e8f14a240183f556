"""Files of data as `fledge init` sees them: what their rows are, how many there are, and how long they are."""

import glob
import json
import os
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from fledge.data.analysis.row_kinds import kinds_of
from fledge.data.formats import FORMATS
from fledge.data.parsing.columns import PLAIN, Row, RowError
from fledge.data.parsing.items import BinaryFeedback, Dialogue, Item, serialize
from fledge.data.parsing.left_out import Counts
from fledge.data.parsing.rows import parse_row
from fledge.data.reading.records import Record, file_notices, files_of, format_of, records_of, row_location
from fledge.errors import FledgeError
from fledge.recipe import Source
from fledge.run.file_hash import hash_files
from fledge.run.file_kinds import kind_of_folder

DETECTION_ROWS = 50
MAX_CHARACTERS = 20_000_000  # that are read of one file; what is behind them is estimated
SHORT_LINE = 60  # characters: lines of a text this short are no documents of their own
MIN_PARAGRAPHS = 5
MAIN_COLUMN = 0.5  # share of the characters that the column of a text has
MANY_FILES = 4  # of one folder, kind and form: one line names them all
TRAINING, VALIDATION, TEST = "training", "validation", "test"
PURPOSES = {  # purpose → words in names of files
    VALIDATION: frozenset({"valid", "validation", "val", "dev", "eval", "heldout", "holdout", "验证"}),
    TEST: frozenset({"test", "testset", "测试", "评测"}),
}
HEADS = ("title", "标题", "author", "作者")  # columns that may stand before the text
PACKED = {".gz": 3.5, ".zst": 3.5, ".bz2": 4.0, ".xz": 4.5, ".parquet": 2.0}  # text that a byte of such files holds, about
TOOLS_TEXT = 500  # characters that a template writes around tools
KNOWN_HAN = 3  # times that a character occurs which a vocabulary should have


@dataclass
class Amount:
    """Characters of some rows: Chinese ones and others, and how often each Chinese one occurs."""

    other: int = 0
    han: Counter[str] = field(default_factory=Counter)

    @property
    def characters(self) -> int:
        """All of them."""
        return self.other + self.han.total()

    @property
    def han_share(self) -> float:
        """Share of Chinese characters; 0 without any text."""
        return self.han.total() / self.characters if self.characters else 0.0

    @property
    def known_han(self) -> int:
        """Different Chinese characters that occur often enough to be learned."""
        return sum(count >= KNOWN_HAN for count in self.han.values())

    def add(self, text: str) -> None:
        """Count the characters of a text."""
        han = [one for one in text if "\u3400" <= one <= "\u9fff"]
        self.han.update(han)
        self.other += len(text) - len(han)

    def update(self, amount: "Amount", scale: float = 1.0) -> None:
        """Add another amount, `scale` times."""
        self.other += round(amount.other * scale)
        for one, count in amount.han.items():
            self.han[one] += round(count * scale)


@dataclass(kw_only=True)
class DataFile:
    """A file, and what its rows are.

    `kind`: of the stage that they are for. `source`: the keys of a recipe's source beside `path`, each with its reason in
    `reasons`. `rows`: all of them; `used` of them can be used, `left_out` says why others cannot. `amount`: characters of the
    used rows, `lengths`: of the longest sequence of each: Chinese and other characters, and turns. `distinct`: hashes of the
    rows. `labels`: those that labelled answers have. `openings`: the first questions, or beginnings of texts. `scale`: by how
    much the file is larger than what was read of it, which the counts do not contain. `purpose`: see `purpose_of`."""

    path: Path
    kind: str
    source: dict[str, Any] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    rows: int = 0
    used: int = 0
    left_out: Counts = field(default_factory=Counts)
    amount: Amount = field(default_factory=Amount)
    lengths: list[tuple[int, int, int]] = field(default_factory=list)
    distinct: set[int] = field(default_factory=set)
    labels: set[bool] = field(default_factory=set)
    openings: list[str] = field(default_factory=list)
    scale: float = 1.0
    purpose: str = TRAINING


def purpose_of(path: Path, folders: Sequence[str] = ()) -> str:
    """What the name of a file says that it is for: training, validation or test; else the names of the `folders` in which it
    lies. `my_test_2k.jsonl` is for tests, and `test_train.jsonl` for training."""
    for name in (path.name, *reversed(folders)):
        parts = {part.removesuffix("s") for part in re.split(r"[^a-z]+", name.casefold())}
        if parts & {"train", "training"}:
            return TRAINING
        for purpose, words in PURPOSES.items():
            if parts & words or any(word in name for word in words if not word.isascii()):
                return purpose
    return TRAINING


def alike(files: Sequence[DataFile]) -> list[list[DataFile]]:
    """The files in groups of those that one line of a recipe can name: all with an ending in a folder, of one kind, read in one
    way, if they are many; each other file alone."""
    groups: dict[tuple[Any, ...], list[DataFile]] = {}
    for file in files:
        settings = json.dumps([file.source, file.purpose], ensure_ascii=False, sort_keys=True)
        groups.setdefault((file.path.parent, file.path.suffix, file.kind, settings), []).append(file)
    found: list[list[DataFile]] = []
    for (folder, suffix, *_), group in groups.items():
        is_whole = len(group) >= MANY_FILES and len(group) == sum(one.suffix == suffix for one in folder.iterdir())
        found += [group] if is_whole else [[file] for file in group]
    return found


def path_of(group: Sequence[DataFile]) -> str:
    """The path of a file, or the glob of a group."""
    first = group[0].path
    return str(first) if len(group) == 1 else os.path.join(glob.escape(str(first.parent)), f"*{first.suffix}")


@dataclass(frozen=True)
class Unused:
    """A file that is not used, and why."""

    path: Path
    reason: str


def find_files(paths: Sequence[str]) -> tuple[list[Path], list[Unused]]:
    """The files of rows that paths name, and those that cannot be read as rows or are there twice. A folder stands for all
    files in it and below it; hidden ones are not looked at. Raises FledgeError for a path at which nothing is."""
    found: list[Path] = []
    unused: list[Unused] = []
    for text in paths:
        path = Path(text).expanduser()
        if not path.is_dir():
            found += files_of(Source(path=text), "FILES")
            continue
        for file in _below(path, set(), unused):
            if format_of(file) is None:
                unused.append(Unused(file, "no format of rows: they are .jsonl, .json, .csv, .tsv, .txt, .parquet and .arrow"))
            else:
                found.append(file)
    return _without_copies(list(dict.fromkeys(found)), unused), unused


def _without_copies(files: Sequence[Path], unused: list[Unused]) -> list[Path]:
    """The files without those that are another one, or have its content; these are added to `unused`."""
    places: dict[str, Path] = {}
    contents: dict[tuple[int, str], Path] = {}
    sizes = Counter(file.stat().st_size for file in files)
    kept = []
    for file in files:
        size, place = file.stat().st_size, os.path.realpath(file)
        content = (size, hash_files(file)) if sizes[size] > 1 and size else None
        same = places.get(place) or (contents.get(content) if content else None)
        if same is not None:
            unused.append(Unused(file, f"it is the same as {same}"))
            continue
        places[place] = file
        if content is not None:
            contents[content] = file
        kept.append(file)
    return kept


def _below(folder: Path, seen: set[Path], unused: list[Unused]) -> list[Path]:
    """The files of a folder and of those in it, in order, without hidden ones and recipes. Folders of runs and models, and
    those that cannot be read, are added to `unused`; each folder is looked at once, whatever links lead to it."""
    real = folder.resolve()
    if real in seen:
        return []
    seen.add(real)
    try:
        is_run = (folder / "recipe.yaml").exists() or (folder / "events.jsonl").exists()
        if (kind := "a run" if is_run else kind_of_folder(folder)) is not None:
            unused.append(Unused(folder, f"it is {kind}, and no folder of data"))
            return []
        found: list[Path] = []
        for path in sorted(folder.iterdir()):
            if path.name.startswith(".") or path.suffix in (".yaml", ".yml"):
                continue
            found += _below(path, seen, unused) if path.is_dir() else [path] if path.is_file() else []
        return found
    except OSError as error:
        unused.append(Unused(folder, f"it cannot be read: {error.strerror}"))
        return []


def look_at(path: Path, folders: Sequence[str] = ()) -> DataFile | Unused:
    """What a file holds; Unused where its rows are of no known kind, or none can be used. `folders`: as in `purpose_of`."""
    try:
        found = _described(path)
        found.purpose = purpose_of(path, folders)
    except FledgeError as error:
        return Unused(path, f"{error.what}; {error.hint}" if error.hint else error.what)
    except OSError as error:
        return Unused(path, f"it cannot be read: {error.strerror}")
    except RowError as error:
        return Unused(path, f"{error.reason}: {error.detail}" if error.detail else error.reason)
    if not found.used:
        why = "; ".join(found.left_out.lines())
        return Unused(path, f"none of its {found.rows:,} rows can be used: {why}" if why else "it holds no rows")
    return found


def _described(path: Path) -> DataFile:
    file = _of_texts(path) if format_of(path) == ".txt" else _of_columns(path)
    source = Source.model_validate({"path": str(path), **file.source})
    file.notices = file_notices(path, source)
    characters = 0
    for record in _records(path, source):
        file.rows += 1
        item = file.left_out.parsed(record, row_location(str(path), record.number), partial(_item, file.kind, source))
        if item is None:
            continue
        characters += _count(file, item)
        if characters > MAX_CHARACTERS:
            read = file.amount.han.total() * 3 + file.amount.other
            file.scale = max(1.0, PACKED.get(path.suffix.lower(), 1.0) * path.stat().st_size / read)
            break
    return file


def _count(file: DataFile, item: Item) -> int:
    """Count an item, and return its characters. Its length is that of its longest sequence: of several answers, the longest."""
    texts, answers, total = item.texts(), sorted(item.answers, key=len), Amount()
    for text in texts:
        total.add(text)
    longest = total
    if answers:
        longest = Amount()
        for text in [*texts[: len(texts) - len(answers)], answers[-1]]:
            longest.add(text)
    turns, written = 0, 0
    if isinstance(item, Dialogue):
        turns = len(item.turns) + bool(answers)
        written = sum(len(call.name + call.arguments) for turn in item.turns for call in turn.tool_calls)
        written += len(item.tools) + TOOLS_TEXT if item.tools else 0
    file.used += 1
    file.amount.update(total)
    file.lengths.append((longest.han.total(), longest.other + written, turns))
    file.distinct.add(hash(serialize(item)))
    if isinstance(item, BinaryFeedback):
        file.labels.add(item.desirable)
    if len(file.openings) < DETECTION_ROWS:
        file.openings.append(item.question)
    return total.characters


def _item(kind: str, source: Source, value: Any) -> Item:
    return parse_row(value, source, FORMATS[kind].parse)


def _records(path: Path, source: Source) -> Iterator[Record]:
    return (record for _, record in records_of([path], source))


# -- what the rows are -----------------------------------------------------------------------------------------------------


def _of_texts(path: Path) -> DataFile:
    """A text file: its lines are documents if they are long, else its paragraphs, else the whole file is one."""
    lines = [str(one.value) for one in islice(_records(path, Source(path=str(path), documents="line")), 1000)]
    if not lines or statistics.median(map(len, lines)) >= SHORT_LINE:
        return DataFile(path=path, kind="pretrain")
    usual = round(statistics.median(map(len, lines)))
    paragraphs = list(islice(_records(path, Source(path=str(path), documents="paragraph")), MIN_PARAGRAPHS))
    if len(paragraphs) >= MIN_PARAGRAPHS:
        why = f"its lines are short ({usual} characters), and blank lines part it: a paragraph is a document"
        return DataFile(path=path, kind="pretrain", source={"documents": "paragraph"}, reasons=[why])
    why = f"its lines are short ({usual} characters), and no blank lines part it: the whole file is one document"
    return DataFile(path=path, kind="pretrain", source={"documents": "file"}, reasons=[why])


def _of_columns(path: Path) -> DataFile:
    """A file of rows with columns: of the kind that most of its first rows are; else one column may hold its texts."""
    source = Source(path=str(path))
    records = [(path, one) for one in islice(_records(path, source), DETECTION_ROWS) if not one.broken]
    if not records:
        raise RowError("none of its first rows can be read")
    kinds, problems = kinds_of(records, source)
    if kinds:
        return DataFile(path=path, kind=kinds.most_common(1)[0][0])
    if (columns := _text_columns([one.value for _, one in records])) is not None:
        why = f"no column has a usual name; {columns[-1]} holds most of the text"
        named = columns[0] if len(columns) == 1 else columns
        return DataFile(path=path, kind="pretrain", source={"columns": {"text": named}}, reasons=[why])
    raise problems[0][1]


def _text_columns(values: Sequence[Any]) -> list[str] | None:
    """The columns that make a document, where one of them holds most of the text: that one, behind short ones that say what it
    is (a title, an author). None where no column stands out."""
    sizes: Counter[str] = Counter()
    for value in values:
        for name, content in value.items() if isinstance(value, dict) else ():
            sizes[name] += _size_of(content) if name.strip().casefold() not in PLAIN else 0
    sizes = +sizes
    if not sizes:
        return None
    main, size = sizes.most_common(1)[0]
    prose = [Row.of(value, Source(path="data")).get(main) for value in values if isinstance(value, dict)]
    is_list = any(isinstance(one, list) for one in prose)
    heads = [name for name in HEADS if name in sizes and name != main]
    if size < MAIN_COLUMN * sizes.total() or (len(sizes) - len(heads) == 2 and not is_list):  # perhaps question and answer
        return None
    return [*heads, main]


def _size_of(content: Any) -> int:
    if isinstance(content, str):
        return len(content)
    is_texts = isinstance(content, list) and all(isinstance(one, str) for one in content)
    return sum(map(len, content)) if is_texts else 0

"""Settings in texts: Python files, documents with pieces of configuration, headers of logs. Nothing is ever executed."""

import ast
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from fledge.training_log.derive import derived
from fledge.training_log.records import TrainingSettings
from fledge.training_log.setting_names import BY_NAME, CHOSEN_SECTION, WARMUP_SHARE_NAMES, literal, setting_key
from fledge.training_log.settings_map import WORD_KEYS, settings_from


class NumberedLine(Protocol):
    """A line of a text with its number, from 1."""

    @property
    def number(self) -> int:
        """The number of the line."""
        ...

    @property
    def text(self) -> str:
        """The line itself."""
        ...


@dataclass(kw_only=True)
class Piece:
    """Settings of one block of a text. `values`: name → value; `lines`: name → line; `before`: name → the value before a
    change, where a comment says it (`from 50 to 25`); `name`: of the class or section around them; `first`, `last`: lines."""

    first: int
    last: int
    name: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    before: dict[str, Any] = field(default_factory=dict)
    rows_of_update: float | None = None

    def add(self, name: str, value: Any, line: int, *, replaces: bool = False) -> None:
        """Add a setting, unless the block has it already and this one does not say that it `replaces` it."""
        if replaces or name not in self.values:
            self.values[name], self.lines[name] = value, line


FENCE = re.compile(r"^\s*(?:```|~~~)\s*(\w*)")
ASSIGNMENT = re.compile(
    r"^\s*(?:self\.)?(?P<name>[A-Za-z_]\w*)\s*(?::\s*[\w\[\]., |]+?)?\s*=\s*(?P<value>[^=#].*?)\s*,?\s*(?P<comment>#.*)?$"
)
PAIR = re.compile(
    r"^\s*[-*]?\s*[\"']?(?P<name>[\w.\u4e00-\u9fff][\w.\- \u4e00-\u9fff()（）&,]*?)[\"']?\s*[:：=]\s*(?P<value>[^#]+?)\s*,?\s*"
    r"(?P<comment>#.*)?$"
)
SECTION = re.compile(r"^\s*class\s+(\w+)")
OPTION = re.compile(r"(?<!\S)--([A-Za-z][\w.-]*)(?:=|\s+)(\"[^\"]*\"|'[^']*'|[^\s\\-][^\s\\]*)")
CHANGED = re.compile(r"(?:从|由|from|was)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*(?:\S*?(?:到|为|至)|to\b)", re.IGNORECASE)
PRODUCT = re.compile(r"batch[ _]?size\D{0,12}?((?:\d+\s*[*×x]\s*)+\d+)\s*=\s*(\d+)", re.IGNORECASE)
ROWS = re.compile(
    r"(\d[\d,]{2,})\s*(?:条|行|个|rows|examples|samples)?\s*/\s*[（(]?\s*(\d+(?:\s*[*×x]\s*\d+)+)\s*[)）]?", re.IGNORECASE
)
SHELL = ("bash", "sh", "shell", "console", "zsh")
HEADER = re.compile(
    r"^\W*(?:\[[^\]]*\]\s*)*(?:(?P<change>[Oo]verrid\w*)\s*:\s*)?(?P<name>[A-Za-z][\w &,().\-/]{1,70}?)\s*[=:]\s*"
    r"(?P<value>[\w.,+\-]+?\s?[MBK]?)\s*,?\s*$"
)
COMMENT = re.compile(r"\s+#.*$")
PREFIX = re.compile(
    r"(?:\[[^\]]*\]|[\d/\-.:,TZ+]{8,}|(?:DEBUG|INFO|NOTICE|WARN(?:ING)?|ERROR|CRITICAL)\b(?::[\w.]+:)?|[\w./]+\.py:\d+"
    r"|-\s[\w.]+\s(?=-\s)|>>|[-|:]|\s)++"
)
"""What a logger writes before a message: a date, a level, its name, the place in the source."""
BANNER = re.compile(r"\*{3,}\s*(?P<title>\w[^*]*?)\s*\*{3,}")
OF_EVALUATION = re.compile(r"\b(?:eval|evaluat|predict|valid|test|inference)", re.IGNORECASE)
BANNER_LINES = 5  # with the title of a banner, which belong to it


# -- logs ---------------------------------------------------------------------------------------------------------------


def settings_of_lines(lines: Iterable[NumberedLine], where: str) -> TrainingSettings:
    """Settings that a trainer printed before and while it trained: lines that hold a known name, `=` or `:` and a number, and
    command lines. The first value of a name counts, unless a later line says that it overrides it."""
    piece, evaluates = Piece(first=1, last=1), 0
    for line in lines:
        text = line.text.strip()
        banner = BANNER.search(text) if "***" in text else None
        evaluates = evaluates - 1 if banner is None else BANNER_LINES * bool(OF_EVALUATION.search(banner["title"]))
        if evaluates > 0:
            continue
        if "Namespace(" in text or "TrainingArguments(" in text:
            for name, value in _of_call(text):
                piece.add(name, value, line.number)
        for name, value in OPTION.findall(text):
            if _is_setting(name):
                piece.add(name, literal(value), line.number)
        match = _header(COMMENT.sub("", text))
        if match is not None:
            name, is_change = match["name"].strip(), match["change"] is not None
            piece.add(name, literal(match["value"]), line.number, replaces=is_change)
    return _settings(piece, where)


def _header(text: str) -> re.Match[str] | None:
    """The setting that a line is, also behind what a logger writes before it."""
    if len(text) >= 200:
        return None
    match = HEADER.match(text[-120:])
    if match is None or not _is_setting(match["name"]):
        prefix = PREFIX.match(text)
        match = HEADER.match(text[prefix.end() :][-120:]) if prefix else None
    return match if match is not None and _is_setting(match["name"]) else None


def _is_setting(name: str) -> bool:
    key = setting_key(name)
    return key in BY_NAME or key in WARMUP_SHARE_NAMES or key in WORD_KEYS


def _of_call(text: str) -> Iterator[tuple[str, Any]]:
    for name, value in re.findall(r"(\w+)=('[^']*'|[^,()\s]+)", text):
        if _is_setting(name):
            yield name, literal(value)


def _settings(piece: Piece, where: str) -> TrainingSettings:
    found = settings_from(piece.values, where, [piece.name] if piece.name else [])
    lines = {setting_key(name): line for name, line in piece.lines.items()}
    origin = {
        name: f"{place}, line {lines[key]:,}" if (key := setting_key(place.rpartition(": ")[2])) in lines else place
        for name, place in found.origin.items()
    }
    return replace(found, origin=origin)


# -- Python and documents -----------------------------------------------------------------------------------------------


def settings_of_text(text: str, where: str, stage: str | None = None) -> TrainingSettings:
    """The settings of a run in a Python file or a document. `stage`: a class or section to take.

    Where several blocks give a setting, the run's own are the blocks before the first that gives another value for a setting:
    from there on, a document proposes changes. What only proposals tell is taken where they say what it was before, or agree.
    """
    notes: list[str] = []
    pieces, chosen = _of_stage([piece for piece in _pieces(text) if piece.values or piece.rows_of_update], stage, notes)
    own, proposals = _own_and_proposed(pieces)
    run = Piece(first=1, last=1, name=next((piece.name for piece in (*own, *proposals) if piece.name), ""))
    for piece in own:
        for name, value in piece.values.items():
            run.add(name, value, piece.lines[name])
    _from_proposals(run, proposals, notes)
    rows = next((piece.rows_of_update for piece in own if piece.rows_of_update), None)
    if rows:
        run.values.setdefault("effective_batch_size", rows)
    found = _settings(run, where)
    found = _with_rows(found, text, notes)
    if len(proposals) > 0:
        spans = ", ".join(_place(piece) for piece in proposals[:6])
        notes.append(f"Settings that change what was given before are taken as proposals, not as the run's: {spans}.")
    section = {CHOSEN_SECTION: chosen} if chosen else {}
    return derived(replace(found, other={**found.other, **section, "assumed": (*found.other.get("assumed", ()), *notes)}))


def _of_stage(pieces: list[Piece], stage: str | None, notes: list[str]) -> tuple[list[Piece], str | None]:
    """The blocks of one stage, and its name if it was asked for; a sentence on others: classes of different names are settings
    of different stages."""
    named = {piece.name: None for piece in pieces if piece.name and any(_is_setting(name) for name in piece.values)}
    wanted = next((name for name in named if stage is not None and stage.lower() in name.lower()), None)
    if len(named) < 2:
        return pieces, wanted
    chosen = wanted or next(iter(named))
    others = ", ".join(name for name in named if name != chosen)
    kept = [piece for piece in pieces if piece.name in ("", chosen)]
    notes.append(f"Settings are those of {chosen}; there are {others} too, which --stage chooses.")
    return kept, wanted


def _place(piece: Piece) -> str:
    """Where a block stands, in words."""
    lines = f"line {piece.first:,}" if piece.first == piece.last else f"lines {piece.first:,}–{piece.last:,}"
    return f"{piece.name} ({lines})" if piece.name else lines


def _pieces(text: str) -> list[Piece]:
    """The blocks of settings of a text, in order: the classes of a Python file, the blocks of code of a document. A text that
    is code as a whole, or has more settings outside of its fences than inside, is no document."""
    lines = text.split("\n")
    if not any(FENCE.match(line) for line in lines) or _is_code(text):
        return _of_code(text, 1)
    pieces, outside = [], list(lines)
    for first, language, inside in _fenced(lines):
        pieces += _of_shell(inside, first) if language in SHELL else _of_code("\n".join(inside), first)
        outside[first - 1 : first - 1 + len(inside)] = [""] * len(inside)
    beside = _line_by_line("\n".join(outside), 1)
    return [beside] if _count([beside]) > _count(pieces) else pieces


def _count(pieces: list[Piece]) -> int:
    """The number of different settings in these blocks."""
    return len({name for piece in pieces for name in piece.values if _is_setting(name)})


def _is_code(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _fenced(lines: list[str]) -> Iterator[tuple[int, str, list[str]]]:
    start, language = None, ""
    for index, line in enumerate(lines):
        match = FENCE.match(line)
        if match is None:
            continue
        if start is None:
            start, language = index + 1, match[1].lower()
        else:
            yield start + 1, language, lines[start:index]
            start = None


def _of_shell(lines: list[str], first: int) -> list[Piece]:
    piece = Piece(first=first, last=first + len(lines) - 1)
    for number, line in enumerate(lines, first):
        for name, value in OPTION.findall(line):
            if _is_setting(name):
                piece.add(name, literal(value), number)
    return [piece]


def _of_code(code: str, first: int) -> list[Piece]:
    """The settings of a piece of Python, by its syntax where it has one, else line by line."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [_line_by_line(code, first)]
    lines = code.split("\n")
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    pieces = []
    for node in classes:
        piece = Piece(first=first + node.lineno - 1, last=first + (node.end_lineno or node.lineno) - 1, name=node.name)
        _assignments(node.body, piece, first, lines)
        pieces.append(piece)
    rest = Piece(first=first, last=first + len(lines) - 1)
    _assignments([node for node in tree.body if node not in classes], rest, first, lines)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            _arguments(node, rest, first)
    _comments(rest if not pieces else pieces[-1], lines)
    return [*([rest] if rest.values or not pieces else []), *pieces]


def _assignments(body: list[ast.stmt], piece: Piece, first: int, lines: list[str]) -> None:
    for node in body:
        target = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
        if not isinstance(target, ast.Name) or not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        value = _constant(node.value)
        if value is not NOT_CONSTANT:
            piece.add(target.id, value, first + node.lineno - 1)
            _change(piece, target.id, lines[node.lineno - 1])


def _arguments(node: ast.Call, piece: Piece, first: int) -> None:
    """The settings in a call: `TrainingArguments(learning_rate=1e-4)`, `add_argument("--lr", default=1e-4)`, `dict(lr=1)`."""
    keywords = {one.arg: one.value for one in node.keywords if one.arg}
    if isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument" and node.args:
        name = _constant(node.args[-1])
        value = _constant(keywords["default"]) if "default" in keywords else NOT_CONSTANT
        if isinstance(name, str) and value is not NOT_CONSTANT:
            piece.add(name.lstrip("-"), value, first + node.lineno - 1)
        return
    for name, inner in keywords.items():
        value = _constant(inner)
        if _is_setting(name) and value is not NOT_CONSTANT:
            piece.add(name, value, first + inner.lineno - 1)


NOT_CONSTANT = object()
OPERATIONS: dict[type[ast.operator], Any] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.FloorDiv: lambda a, b: a // b,
}
LARGEST = 1e15  # of a product: no count of a training run is larger


def _constant(node: ast.expr) -> Any:
    """The value of a literal, or of a sum or product of numbers such as `2 * 1024`; NOT_CONSTANT for all else."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Attribute):  # of an enumeration: SchedulerType.LINEAR, torch.bfloat16
        owner = node.value.id if isinstance(node.value, ast.Name) else ""
        return node.attr.lower() if owner[:1].isupper() or owner == "torch" else NOT_CONSTANT
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _constant(node.operand)
        return -inner if isinstance(inner, int | float) else NOT_CONSTANT
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        left, right = _constant(node.left), _constant(node.right)
        numbers = all(type(one) in (int, float) and math.isfinite(one) and abs(one) < LARGEST for one in (left, right))
        if numbers and not (right == 0 and isinstance(node.op, ast.Div | ast.FloorDiv)):
            return OPERATIONS[type(node.op)](left, right)
    return NOT_CONSTANT


def _line_by_line(code: str, first: int) -> Piece:
    lines = code.split("\n")
    piece = Piece(first=first, last=first + len(lines) - 1)
    for number, line in enumerate(lines, first):
        if match := SECTION.match(line):
            piece.name = piece.name or match[1]
        for name, value in OPTION.findall(line):
            if _is_setting(name):
                piece.add(name, literal(value), number)
        match = ASSIGNMENT.match(line) or PAIR.match(line)
        if match is None or not _is_setting(match["name"]):
            continue
        piece.add(match["name"].strip(), literal(match["value"]), number)
        _change(piece, match["name"].strip(), line)
    _comments(piece, lines)
    return piece


def _change(piece: Piece, name: str, line: str) -> None:
    """Remember what a comment says that a setting was before."""
    if match := CHANGED.search(line.partition("#")[2]):
        piece.before[name] = literal(match[1])


def _comments(piece: Piece, lines: list[str]) -> None:
    """Remember the rows of an update, where a comment computes them: `batch size = 24 * 2 * 4 = 192`."""
    for line in lines:
        match = PRODUCT.search(line.partition("#")[2])
        if match and math.prod(int(one) for one in re.findall(r"\d+", match[1])) == int(match[2]):
            piece.rows_of_update = float(match[2])


# -- what is the run's own ----------------------------------------------------------------------------------------------


def _own_and_proposed(pieces: list[Piece]) -> tuple[list[Piece], list[Piece]]:
    """The blocks of the run itself, and those that change what was given before. Command lines are the run's own."""
    own: list[Piece] = []
    proposed: list[Piece] = []
    seen: dict[str, Any] = {}
    for piece in pieces:
        known = {name: value for name, value in piece.values.items() if _is_setting(name)}
        differs = any(name in seen and seen[name] != value for name, value in known.items())
        is_command = not known.keys() - {"num_processes", "is_finetune", "nproc_per_node"}
        if differs or (proposed and not is_command):
            proposed.append(piece)
        else:
            own.append(piece)
            seen.update({name: value for name, value in known.items() if name not in seen})
    return own, proposed


def _from_proposals(run: Piece, proposals: list[Piece], notes: list[str]) -> None:
    """Add to the run what only proposals tell: the value before their change, or the one that all of them leave alone."""
    names = dict.fromkeys(name for piece in proposals for name in piece.values if name not in run.values)
    for name in names:
        having = [piece for piece in proposals if name in piece.values]
        before = {repr(piece.before[name]): piece.before[name] for piece in having if name in piece.before}
        if len(before) == 1:
            run.add(name, next(iter(before.values())), next(p.lines[name] for p in having if name in p.before))
            if _is_setting(name) or not before:
                notes.append(f"{name} is what proposals say that it was before their change.")
        elif not before and len({repr(piece.values[name]) for piece in having}) == 1:
            run.add(name, having[0].values[name], having[0].lines[name])
            if _is_setting(name):
                notes.append(f"{name} stands only in proposals, which all give it the same value: it is taken for the run's.")


def _with_rows(found: TrainingSettings, text: str, notes: list[str]) -> TrainingSettings:
    """The settings with the number of examples, where the text divides it by the rows of this run's updates."""
    if found.rows is not None or not found.batch_rows:
        return found
    for match in ROWS.finditer(text):
        if math.prod(int(one) for one in re.findall(r"\d+", match[2])) == found.batch_rows:
            rows = float(match[1].replace(",", ""))
            line = text.count("\n", 0, match.start()) + 1
            notes.append(f"{rows:,.0f} examples: line {line:,} divides them by the {found.batch_rows:g} rows of an update.")
            return replace(found, rows=rows, origin={**found.origin, "rows": f"a division, line {line:,}"})
    return found

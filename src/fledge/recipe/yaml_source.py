"""Reading YAML that people wrote: a regular text file of limited size, depth and repetition, and mistakes named as such."""

import re
import stat
from collections.abc import Sequence
from pathlib import Path

import yaml

from fledge.errors import FledgeError, first_line
from fledge.recipe.mistyped import full_width_marks
from fledge.recipe.yaml_dialect import RecipeLoader

MAX_BYTES = 2**20  # of a recipe
MAX_DEPTH = 60  # of nested mappings and lists
MAX_NODES = 200_000  # with everything that aliases repeat
TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".zst", ".zip", ".xlsx", ".safetensors")
PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map", "merge"))
NULL_TAG = "tag:yaml.org,2002:null"
FULL_WIDTH_KEY = re.compile(r"^\s*(?:- )?\s*[\w.\"'-]+\s*：")
NO_BLANK = re.compile(r"^\s*(?:- )?\s*[\w.-]+:[^\s/]")


def read_yaml_text(path: str, what: str, max_bytes: int = MAX_BYTES) -> str:
    """The text of a YAML file. Raises FledgeError if it is missing, no regular file, too large, or not UTF-8.

    `what`: what the file is in messages, such as `recipe`.
    """
    file = Path(path).expanduser()
    try:
        found = file.stat()
        if stat.S_ISDIR(found.st_mode):
            raise FledgeError(f"this is a folder, not a {what}", where=path, hint=_folder_hint(file))
        if not stat.S_ISREG(found.st_mode):
            raise FledgeError(f"a {what} is a regular file; this is a device, a pipe or a socket", where=path)
        if file.name.lower().endswith(TABLES):
            raise data_given(path, what)
        if found.st_size > max_bytes:
            raise FledgeError(f"too large for a {what}: {found.st_size / 2**20:,.1f} MiB", where=path,
                              hint=f"a {what} is a short YAML file; at most {max_bytes >> 20} MiB are read")  # fmt: skip
        content = file.read_bytes()
    except FileNotFoundError:
        raise FledgeError(
            f"this {what} does not exist", where=path, hint="check the path; `ls recipes` shows ready ones"
        ) from None
    except OSError as error:
        raise FledgeError(f"cannot read the {what}: {error.strerror or error}", where=path) from None
    except ValueError as error:  # a path with a NUL
        raise FledgeError(f"cannot read the {what}: {error}", where=path) from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise FledgeError(
            f"this {what} is not UTF-8 (byte {error.start})", where=f"{path}:{line}", hint="save it as UTF-8"
        ) from None


def _folder_hint(folder: Path) -> str:
    if (folder / "recipe.yaml").is_file():
        return f"a run is resumed by its recipe: {folder / 'recipe.yaml'}"
    return "name the YAML file in it"


def data_given(path: str, what: str) -> FledgeError:
    """The error for a file of data in place of a YAML file."""
    example = f"stages: {{sft: {{data: {{train: {path}}}}}}}"
    hint = f"name it in a recipe, such as `{example}`; `fledge data stats {path}` shows its rows"
    return FledgeError(f"this is data, not a {what}", where=path, hint=hint if what == "recipe" else None)


class _Loader(RecipeLoader):
    """Composes nodes within limits; an anchor cannot contain itself."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._open: list[object] = []

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:  # type: ignore[override]
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) and event.anchor in self._open:
            raise yaml.MarkedYAMLError(problem=f"'*{event.anchor}' is inside of what it repeats", problem_mark=event.start_mark)
        if len(self._open) >= MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested more than {MAX_DEPTH} deep", problem_mark=event.start_mark)
        self._open.append(getattr(event, "anchor", None))
        try:
            return super().compose_node(parent, index)
        finally:
            self._open.pop()


def compose_yaml(text: str, path: str, what: str) -> yaml.Node | None:
    """The only document of a YAML text as a node, None for an empty text. Raises FledgeError with file and line."""
    lines = text.split("\n")
    try:
        node = _compose(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem, line, hint = _explain(str(error.problem or error.context), mark.line if mark else 0, lines, path, what)
        raise FledgeError(problem, where=f"{path}:{line + 1}", hint=hint) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise FledgeError(f"not readable as YAML: it holds the character U+{_code(error.character):04X}",
                          where=f"{path}:{line}", hint="is this a text file?") from None  # fmt: skip
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise FledgeError(f"not readable as YAML: {first_line(error)}", where=path) from None
    if node is not None:
        _check_size(node, path)
    return node


def _code(character: object) -> int:
    return character if isinstance(character, int) else ord(str(character)[0])


def _compose(text: str) -> yaml.Node | None:
    loader = _Loader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def _check_size(node: yaml.Node, path: str) -> None:
    """Raise FledgeError if the document is too large, with all that aliases repeat. Nodes cannot contain themselves."""
    sizes: dict[int, tuple[int, int]] = {}  # of a node: nodes in it, and depth

    def size(node: yaml.Node) -> tuple[int, int]:
        if id(node) not in sizes:
            parts = node.value if isinstance(node, yaml.SequenceNode) else []
            if isinstance(node, yaml.MappingNode):
                parts = [part for pair in node.value for part in pair]
            inner = [size(part) for part in parts]
            sizes[id(node)] = 1 + sum(count for count, _ in inner), 1 + max((depth for _, depth in inner), default=0)
        return sizes[id(node)]

    count, depth = size(node)
    if depth > MAX_DEPTH:
        raise FledgeError(f"its aliases are nested more than {MAX_DEPTH} deep", where=path)
    if count > MAX_NODES:
        raise FledgeError(f"it has {count:,} keys and values when its aliases are followed", where=path,
                          hint=f"at most {MAX_NODES:,} are read; write them out, or leave the aliases out")  # fmt: skip


def full_width_colon(line: str) -> str | None:
    """The message for a line that has a full-width colon after its key; None for another line."""
    return "a full-width colon 「：」 stands after a key" if FULL_WIDTH_KEY.match(line) else None


def full_width_colon_in(node: yaml.Node) -> str | None:
    """The message for a plain text of several lines, one of which was meant as a key."""
    return next(filter(None, map(full_width_colon, str(node.value).replace(" ", "\n").split("\n"))), None)


def shown_tag(node: yaml.Node) -> str:
    """The tag as people write it: `!!int`, `!mine`."""
    return str(node.tag).replace("tag:yaml.org,2002:", "!!")


def has_surrogates(text: str) -> bool:
    """Whether the text holds half of a surrogate pair, which no file can store."""
    return any("\ud800" <= character <= "\udfff" for character in text)


FULL_WIDTH_HINT = "write an ordinary colon and a blank: `key: value`"


def _explain(problem: str, line: int, lines: Sequence[str], path: str, what: str) -> tuple[str, int, str | None]:
    """What is wrong, its line from 0, and a hint, for a parser's message at a line."""
    if looks_like_data(lines):
        error = data_given(path, what)
        return error.what, 0, error.hint
    near = [number for number in range(min(line, len(lines) - 1), max(-1, line - 4), -1)]
    for number in near:
        if message := full_width_colon(lines[number]):
            return message, number, FULL_WIDTH_HINT
    here = lines[line] if line < len(lines) else ""
    if here[: len(here) - len(here.lstrip())].count("\t"):
        return "a tab stands before the key", line, "indent with blanks: YAML allows no tabs there"
    if "\\t" in problem:
        return "a tab stands where YAML allows none", line, "write blanks in its place"
    for number in near:
        if NO_BLANK.match(lines[number]):
            return "not readable as YAML: no blank stands after a colon", number, FULL_WIDTH_HINT
    if "escape" in problem:
        return (
            f"not readable as YAML: {problem}",
            line,
            "in double quotes a backslash begins an escape: write `/`, or single quotes",
        )
    for number in near:
        if hint := full_width_marks(lines[number]):
            return f"not readable as YAML: {problem}", number, hint
    if "but found another document" in problem or problem.startswith("but found"):
        return "not readable as YAML: a second document begins here", line, "keep one; the mark `---` divides documents"
    return f"not readable as YAML: {problem}", line, _HINTS.get(problem)


_HINTS = {
    "mapping values are not allowed here": "indent keys of one section equally, and quote a value that holds a colon",
    "could not find expected ':'": "each line is `key: value`",
    "expected <block end>, but found '<block mapping start>'": "keys of one section begin in the same column",
}


def looks_like_data(lines: Sequence[str]) -> bool:
    """Whether these lines are rows: JSON Lines, or a table with commas or tabs."""
    return _is_json_lines(lines) or _is_csv(lines)


def _is_json_lines(lines: Sequence[str]) -> bool:
    filled = [line.strip() for line in lines[:20] if line.strip()]
    return len(filled) > 1 and all(line.startswith("{") and line.endswith("}") for line in filled[:-1])


def _is_csv(lines: Sequence[str]) -> bool:
    head = lines[0]
    return ("," in head or "\t" in head.strip()) and not re.search(r"[:{\[]", head) and len(lines) > 1

"""The conventions that CONTRIBUTING names and that no other tool checks: sizes, keywords, and tables instead of branches."""

import ast
from collections.abc import Callable
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

from fledge.recipe.schema_keys import KINDS
from tests.support import markdown

SOURCE = markdown.ROOT / "src" / "fledge"
FILES = sorted(SOURCE.rglob("*.py"))
MAX_LINES, MAX_FUNCTION_LINES, MAX_POSITIONAL = 400, 50, 5
TABLES = ("recipe/schema.py", "recipe/foreign/stage_kinds.py", "data/formats.py", "objective/build.py")


def _name(file: Path) -> str:
    return file.relative_to(SOURCE).as_posix()


def long_files(file: Path, tree: ast.Module) -> list[str]:
    """The file itself, if it is too long."""
    lines = len(file.read_text(encoding="utf-8").splitlines())
    return [f"{lines} lines"] if lines > MAX_LINES else []


def long_functions(file: Path, tree: ast.Module) -> list[str]:
    """Functions that are too long, without their decorators."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lines = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    return [f"{name} has {count} lines" for name, count in lines.items() if count > MAX_FUNCTION_LINES]


def positional_constructions(file: Path, tree: ast.Module) -> list[str]:
    """Classes that are constructed with many values that no keyword names."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    many = [node for node in calls if len(node.args) > MAX_POSITIONAL]
    names = [(node, ast.unparse(node.func).rpartition(".")[2].lstrip("_")) for node in many]
    return [
        f"line {node.lineno}: {name} is given {len(node.args)} values without their names"
        for node, name in names
        if name[:1].isupper() or name == "cls"
    ]


def positional_dataclasses(file: Path, tree: ast.Module) -> list[str]:
    """Data classes of many fields that do not require keywords."""
    problems = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
            annotated = [field for field in node.body if isinstance(field, ast.AnnAssign)]
            fields = [field for field in annotated if "ClassVar" not in ast.unparse(field.annotation)]
            is_dataclass = any(decorator.startswith("dataclass") for decorator in decorators)
            if is_dataclass and len(fields) > MAX_POSITIONAL and not any("kw_only=True" in text for text in decorators):
                problems.append(f"{node.name} has {len(fields)} fields and no kw_only=True")
    return problems


def branches_on_the_kind_of_a_stage(file: Path, tree: ast.Module) -> list[str]:
    """Comparisons with the name of a kind, and isinstance with the class of a stage, outside the tables."""
    if _name(file) in TABLES:
        return []
    problems = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare | ast.MatchValue):
            operands = [node.left, *node.comparators] if isinstance(node, ast.Compare) else [node.value]
            names = {item.value for item in operands if isinstance(item, ast.Constant) and item.value in KINDS}
            problems += [f"line {node.lineno}: comparison with '{name}'" for name in names]
        is_asked = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance"
        if is_asked and "Stage" in ast.unparse(node.args[1]):
            problems.append(f"line {node.lineno}: {ast.unparse(node)}")
    return problems


CHECKS = [long_files, long_functions, positional_constructions, positional_dataclasses, branches_on_the_kind_of_a_stage]


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("check", CHECKS)
def test_the_source_keeps_the_conventions(check: Callable[[Path, ast.Module], list[str]]) -> None:
    problems = [f"{_name(file)}: {text}" for file in FILES for text in check(file, _tree(file))]
    assert not problems, "\n".join(problems)


def test_each_check_finds_what_it_looks_for(tmp_path: Path) -> None:
    file = SOURCE / "invented.py"
    kind = next(iter(KINDS))
    body = "\n".join(f"    value = {number}" for number in range(MAX_FUNCTION_LINES))
    fields = "\n".join(f"    field{number}: int" for number in range(MAX_POSITIONAL + 1))
    sources = {
        long_functions: f"def long():\n{body}\n",
        positional_constructions: "Thing(1, 2, 3, 4, 5, 6)",
        positional_dataclasses: f"@dataclass(frozen=True)\nclass Thing:\n{fields}\n",
        branches_on_the_kind_of_a_stage: f"stage.kind == '{kind}'",
    }
    for check, source in sources.items():
        assert len(check(file, ast.parse(source))) == 1, check.__name__
    assert branches_on_the_kind_of_a_stage(file, ast.parse("isinstance(stage, SftStage)"))
    (tmp_path / "long.py").write_text("\n" * (MAX_LINES + 1), encoding="utf-8")
    assert long_files(tmp_path / "long.py", ast.parse(""))


def test_every_test_file_is_in_a_folder_that_pytest_reads(request: pytest.FixtureRequest) -> None:
    """Pytest leaves out folders of some names, such as `build`, without a word."""
    left_out = request.config.getini("norecursedirs")
    folders = {
        part for file in (markdown.ROOT / "tests").rglob("test_*.py") for part in file.relative_to(markdown.ROOT).parts[:-1]
    }
    assert not [folder for folder in folders for pattern in left_out if fnmatch(folder, pattern)]

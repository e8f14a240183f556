"""Names that the source code defines and mentions, read without importing it."""

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "fledge"


@cache
def _trees() -> dict[str, ast.Module]:
    """The syntax tree of each module, by its dotted name below `fledge`; a package has the name of its folder."""
    trees = {}
    for file in PACKAGE.rglob("*.py"):
        name = ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        trees[name] = ast.parse(file.read_text(encoding="utf-8"))
    return trees


def packages() -> set[str]:
    """The packages and modules directly below `fledge`."""
    return {name.partition(".")[0] for name in _trees()} - {""}


def _targets(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [(alias.asname or alias.name).partition(".")[0] for alias in node.names]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.If):  # if TYPE_CHECKING
        return [name for inner in node.body for name in _targets(inner)]
    return []


@cache
def members() -> dict[str, set[str]]:
    """Names after a dot, by the name before it: names of a module (by its last and its full name), methods and fields of a
    class."""
    names_by_owner: dict[str, set[str]] = defaultdict(set)
    for module, tree in _trees().items():
        names = {name for node in tree.body for name in _targets(node)}
        below = {other.removeprefix(f"{module}.").partition(".")[0] for other in _trees() if other.startswith(f"{module}.")}
        for key in {module, module.rpartition(".")[2]}:
            names_by_owner[key] |= names | below
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                names_by_owner[node.name] |= {name for inner in node.body for name in _targets(inner)}
                assigned = (inner for inner in ast.walk(node) if isinstance(inner, ast.Attribute))
                names_by_owner[node.name] |= {inner.attr for inner in assigned if isinstance(inner.ctx, ast.Store)}
    return names_by_owner


def resolves(dotted: str) -> bool:
    """Whether `module.symbol`, `package.module.symbol`, `Class.member` or a longer chain exists."""
    owner, _, name = dotted.removeprefix("fledge.").rpartition(".")
    known = members()
    if not owner:  # of the package itself
        return name in known[""]
    if owner in known:
        return name in known[owner] or name in known.get(owner.title(), set())  # `run.recipe`: of a Run called `run`
    first, _, last = owner.rpartition(".")
    return bool(first) and resolves(owner) and name in known.get(last, set())


@cache
def words() -> frozenset[str]:
    """Every identifier that code, tests, benchmarks, recipes and project files mention. The names that other trainers and
    earlier versions have for a key do not count."""
    files = [file for folder in ("src", "tests", "benchmarks", "recipes") for file in (ROOT / folder).rglob("*")]
    files += [ROOT / "pyproject.toml", ROOT / "Makefile", ROOT / ".ci" / "run"]
    skipped = (PACKAGE / "recipe" / "foreign", ROOT / "tests" / "recipe", ROOT / "tests" / "docs")
    identifiers: set[str] = set()
    for file in files:
        if file.is_file() and "__pycache__" not in file.parts and not any(folder in file.parents for folder in skipped):
            identifiers |= set(re.findall(r"[A-Za-z_][A-Za-z0-9_]*", file.read_text(encoding="utf-8", errors="ignore")))
    return frozenset(identifiers)


@cache
def strings() -> frozenset[str]:
    """Every string constant of the source code; of an f-string, its parts."""
    return frozenset(
        node.value
        for tree in _trees().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )

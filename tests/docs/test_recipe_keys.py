"""docs/recipes.md describes each key as the schema does, and each key has an effect."""

import ast
import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fledge.errors import FledgeError
from fledge.recipe import load_recipe
from fledge.recipe.schema import Recipe, StageBase
from fledge.recipe.yaml_dialect import RecipeLoader
from tests.support import markdown, recipe_keys, source_index

DOCUMENT = markdown.ROOT / "docs" / "recipes.md"
SECTIONS = {  # the heading above a table -> where its keys are
    "Top level": "", "A stage": "stages.*.", "A source": "stages.*.data.train.", "Of one kind only": "stages.*.",
    **{f"`{name}`": f"{name}." for name in ("tokenizer", "model", "model.moe", "model.rope_scaling", "runtime")},
    **{f"`{name}`": f"{name}." for name in ("generation_samples", "logging", "alerts")},
    **{f"`{name}`": f"stages.*.{name}." for name in ("data", "data.clean", "batch", "optimizer", "schedule", "guards")},
    "`adapter`": "stages.*.adapter.",
    "`quantization`": "stages.*.quantization.",
    "`evaluation.sets`": "stages.*.evaluation.sets.",
}  # fmt: skip
KINDS = tuple(recipe_keys.KINDS)
Documented = dict[tuple[str, str], markdown.Row]


@cache
def documented() -> Documented:
    """The row of each key of each kind of stage."""
    rows: Documented = {}
    for row in markdown.tables(DOCUMENT):
        prefix = next((SECTIONS[title] for title in reversed(row.headings) if title in SECTIONS), None)
        if prefix is None or "key" not in row.cells:
            continue
        (name,) = markdown.ticked(row.cells["key"])
        for kind in row.cells["kind"].split(", ") if "kind" in row.cells else KINDS:
            assert (kind, prefix + name) not in rows, f"{row.line}: {prefix}{name} has two rows"
            rows[kind, prefix + name] = row
    return rows


def keys_of(kind: str) -> dict[str, recipe_keys.Key]:
    """The keys that the tables list: sources are described once, for `train`."""
    again = ("stages.*.data.validation.", "stages.*.data.clean.decontaminate_against.")
    return {path: key for path, key in recipe_keys.keys(kind).items() if not path.startswith(again)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_tables_have_every_key_of_the_schema_and_no_other(kind: str) -> None:
    written = {path for of, path in documented() if of == kind}
    expected = {path for path in keys_of(kind) if not _is_pure_section(path, keys_of(kind))}
    assert sorted(expected - written) == []
    assert sorted(written - set(keys_of(kind))) == []


def _is_pure_section(path: str, keys: dict[str, recipe_keys.Key]) -> bool:
    """Sections of guards have rows for their keys only."""
    return re.fullmatch(r"stages\.\*\.guards\.\w+", path) is not None


def _expected_default(field: FieldInfo) -> object:
    value = field.get_default(call_default_factory=True)
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("kind", KINDS)
def test_the_tables_give_the_defaults_of_the_schema(kind: str) -> None:
    wrong = []
    for path, key in keys_of(kind).items():
        row = documented().get((kind, path))
        if row is None:
            continue
        cell = row.cells.get("default", row.cells.get(kind, ""))
        if key.field.is_required():
            if cell != "required":
                wrong.append(f"{row.line}: {path} is required")
            continue
        default = _default_of(kind, path, key.field)
        if isinstance(default, BaseModel):
            if cell:
                wrong.append(f"{row.line}: {path} is a section and has no default")
            continue
        written = [yaml.load(text, Loader=RecipeLoader) for text in markdown.ticked(cell)]
        if written != [default] or [type(one) for one in written] != [type(default)]:
            wrong.append(f"{row.line}: {path}: {cell} is written, {default!r} is the default")
    assert not wrong, "\n".join(wrong)


def _default_of(kind: str, path: str, field: FieldInfo) -> object:
    """The default of a key in a stage of this kind; the optimizer sections of kinds differ."""
    if path.startswith("stages.*.optimizer."):
        optimizer = recipe_keys.KINDS[kind].model_fields["optimizer"].default
        value = getattr(optimizer, path.rpartition(".")[2])
        return list(value) if isinstance(value, tuple) else value
    return _expected_default(field)


@pytest.mark.parametrize("kind", KINDS)
def test_the_tables_give_the_choices_of_the_schema(kind: str) -> None:
    wrong = []
    for path, key in keys_of(kind).items():
        row, choices = documented().get((kind, path)), recipe_keys.choices_of(key.field)
        if row is None or path == "stages.*.kind":
            continue
        written = set(markdown.ticked(row.cells["type"])) - {"num_experts", "gradient_accumulation_steps"}
        if recipe_keys.section_of(key.field) is None and choices and written != choices:
            wrong.append(f"{row.line}: {path}: {sorted(written)} are written, {sorted(choices)} are accepted")
    assert not wrong, "\n".join(wrong)


def _wrapped(text: str) -> str:
    """A block of YAML as a complete recipe: a fragment is put into the recipe or into a stage."""
    tree = yaml.load(text, Loader=RecipeLoader)
    if not isinstance(tree, dict) or "stages" in tree:
        return text
    if set(tree) <= set(Recipe.model_fields):
        return yaml.safe_dump({**tree, "stages": {"pretrain": {"data": {"train": "corpus.txt"}}}})
    assert set(tree) <= {name for kind in recipe_keys.KINDS.values() for name in kind.model_fields}, sorted(tree)
    return yaml.safe_dump({"stages": {"pretrain": {"data": {"train": "corpus.txt"}, **tree}}})


RECIPES = [
    pytest.param(block, id=f"{markdown.label(document)}:{block.line}")
    for document in markdown.documents()
    for block in markdown.blocks(document)
    if block.language == "yaml"
]


@pytest.mark.parametrize("block", RECIPES)
def test_every_recipe_in_the_documents_loads(block: markdown.Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(yaml.safe_load(block.text), list):
        from fledge.evaluate.prompt_tests import load_cases

        (tmp_path / "prompts.yaml").write_text(block.text, encoding="utf-8")
        assert load_cases(tmp_path / "prompts.yaml")
        return
    file = tmp_path / "recipe.yaml"
    file.write_text(_wrapped(block.text), encoding="utf-8")
    load_recipe([str(file)])


def test_a_recipe_with_an_unknown_key_would_be_noticed(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(_wrapped("schedule: {nam: wsd}"), encoding="utf-8")
    with pytest.raises(FledgeError, match=r"schedule\.nam"):
        load_recipe([str(file)])


# -- keys that are read ---------------------------------------------------------------------------------------------------


class _Reads(ast.NodeVisitor):
    """Attributes that are read, with the function that reads them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.by_method: dict[tuple[str, str], set[str]] = {}
        self._inside: list[str] = []

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._inside.append(node.name)
        self.generic_visit(node)
        self._inside.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if len(self._inside) == 1 and not any("validator" in ast.dump(one) for one in node.decorator_list):
            reads = {inner.attr for inner in ast.walk(node) if isinstance(inner, ast.Attribute)}
            self.by_method[self._inside[0], node.name] = reads
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Load):
            self.counts[node.attr] += 1
        self.generic_visit(node)


@cache
def _reads(*, defining: bool) -> _Reads:
    """The reads in the files that define, load and compare recipes, or in all others."""
    reads = _Reads()
    for file in source_index.PACKAGE.rglob("*.py"):
        path = file.relative_to(source_index.PACKAGE).parts
        if defining == (path[0] == "recipe" and (len(path) > 2 or path[1].removesuffix(".py") in DEFINING)):
            reads.visit(ast.parse(file.read_text(encoding="utf-8")))
    return reads


DEFINING = {"__init__", "schema", "schema_keys", "load", "diff", "resume_policy", "units", "yaml_dialect"}
READ_IN_RECIPE = {"preset"}  # read where the recipe is put together


def unread_keys(keys: Iterable[recipe_keys.Key]) -> list[str]:
    """Keys that no code reads but the code that defines and loads recipes: neither directly nor through a method of their
    section. A name that several sections have must be read as often as there are such sections; sections with equal keys are
    read by shared code."""
    outside, inside = _reads(defining=False), _reads(defining=True)
    owners: dict[str, set[type[BaseModel]]] = {}
    for key in keys:
        owner = StageBase if issubclass(key.owner, StageBase) and key.name in StageBase.model_fields else key.owner
        owners.setdefault(key.name, set()).add(owner)
    unread = []
    for name, sections in owners.items():
        through = sum(
            method in outside.counts and name in reads
            for (owner, method), reads in inside.by_method.items()
            if owner in {base.__name__ for section in sections for base in section.__mro__}
        )
        different = {frozenset(section.model_fields) for section in sections}
        if outside.counts[name] + through < len(different) and name not in READ_IN_RECIPE:
            unread.append(f"{name} of {', '.join(sorted(section.__name__ for section in sections))}")
    return unread


def test_every_key_of_the_recipe_is_read_by_some_code() -> None:
    assert unread_keys(recipe_keys.all_keys().values()) == []


def test_a_key_that_nothing_reads_would_be_noticed() -> None:
    class Section(BaseModel):
        """Two keys."""

        seed: int = 0
        never_read_by_anybody: int = 0

    keys = [recipe_keys.Key(f"section.{name}", Section, field) for name, field in Section.model_fields.items()]
    assert unread_keys(keys) == ["never_read_by_anybody of Section"]

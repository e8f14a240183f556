"""The two READMEs: short, and alike."""

import re

import pytest

from tests.support import markdown

ENGLISH, CHINESE = markdown.ROOT / "README.md", markdown.ROOT / "README.zh.md"
LONGEST = 110


@pytest.mark.parametrize("document", [ENGLISH, CHINESE], ids=markdown.label)
def test_a_readme_has_at_most_110_lines(document: object) -> None:
    assert len((document).read_text(encoding="utf-8").splitlines()) <= LONGEST  # type: ignore[attr-defined]


def test_both_readmes_have_equal_commands_and_recipes() -> None:
    quoted = re.compile(r"who are you\?|你是谁？", re.IGNORECASE)
    lines = [[quoted.sub("…", str(command)) for command in markdown.commands(document)] for document in (ENGLISH, CHINESE)]
    assert lines[0] == lines[1] and len(lines[0]) > 10
    comment = re.compile(r" +#.*$", re.MULTILINE)
    recipes = [
        [comment.sub("", block.text) for block in markdown.blocks(document) if block.language == "yaml"]
        for document in (ENGLISH, CHINESE)
    ]
    assert recipes[0] == recipes[1] and recipes[0]


def test_both_readmes_lead_to_the_documents_in_equal_order() -> None:
    targets = [
        {target.replace("docs/zh/", "docs/") for _, target in markdown.links(document) if not target.startswith("README")}
        for document in (ENGLISH, CHINESE)
    ]
    assert targets[0] == targets[1]
    assert all(target.startswith(("docs/zh/", "docs/glossary")) for _, target in markdown.links(CHINESE) if "docs/" in target)


def test_every_extra_of_the_package_is_in_both_readmes() -> None:
    import tomllib

    extras = tomllib.loads((markdown.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for document in (ENGLISH, CHINESE):
        named = {name for row in markdown.tables(document) for name in markdown.ticked(row.text)}
        assert set(extras) <= named, document

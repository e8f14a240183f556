"""The diagram in docs/architecture.md is the import contract."""

import re
import tomllib

from tests.support import markdown

DOCUMENT = markdown.ROOT / "docs" / "architecture.md"


def layers() -> list[str]:
    """The layers of the import contract from top to bottom, such as `data | model`."""
    tools = tomllib.loads((markdown.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    return tools["importlinter"]["contracts"][0]["layers"]


def test_the_diagram_has_the_layers_of_the_import_contract_in_their_order() -> None:
    diagram = next(block.text for block in markdown.blocks(DOCUMENT) if "flowchart TB" in block.text)
    assert re.findall(r'\["([^"]+)"\]', diagram) == layers()


def test_the_table_has_every_package_of_the_contract_and_no_other() -> None:
    named = [
        name.rstrip("/")
        for row in markdown.tables(DOCUMENT)
        if row.headings[-1] == "Floors"
        for name in markdown.ticked(row.cells["room"])
    ]
    packages = [package for layer in layers() for package in re.split(r" [|:] ", layer)]
    assert sorted(named) == sorted(packages)

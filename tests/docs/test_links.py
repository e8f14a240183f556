"""Links of the documents lead somewhere."""

from pathlib import Path

import pytest

from tests.support import markdown


@pytest.mark.parametrize("document", markdown.documents(), ids=markdown.label)
def test_every_relative_link_leads_to_a_file_and_to_a_heading_in_it(document: Path) -> None:
    broken = []
    for line, target in markdown.links(document):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        file = (document.parent / name).resolve() if name else document
        if not file.exists():
            broken.append(f"{line}: {target}: there is no such file")
        elif anchor and anchor not in markdown.anchors(file):
            broken.append(f"{line}: {target}: {file.name} has no such heading")
    assert not broken, "\n".join(broken)
    assert not markdown.undefined_references(document)


def test_the_index_names_every_document() -> None:
    index = markdown.ROOT / "docs" / "index.md"
    linked = {(index.parent / target.partition("#")[0]).resolve() for _, target in markdown.links(index)}
    missing = [markdown.label(document) for document in markdown.documents() if document not in linked | {index}]
    assert not missing

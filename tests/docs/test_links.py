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


@pytest.mark.parametrize("index", ["docs/index.md", "docs/zh/index.md"])
def test_the_index_names_every_document(index: str) -> None:
    page = markdown.ROOT / index
    linked = {(page.parent / target.partition("#")[0]).resolve() for _, target in markdown.links(page)}
    chinese = {edition for _, edition in markdown.translations()}
    of_its_language = chinese if page in chinese else set(markdown.documents()) - chinese
    missing = [markdown.label(document) for document in sorted(of_its_language) if document not in linked | {page}]
    assert not missing

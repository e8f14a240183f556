"""The table of renamed keys in the changelog."""

from fledge.cli import RENAMED_OPTIONS
from fledge.recipe.foreign.renamed import RENAMED
from tests.support import markdown


def test_every_renamed_key_and_option_is_in_the_changelog() -> None:
    pairs = set()
    for row in markdown.tables(markdown.ROOT / "CHANGELOG.md"):
        if "Renamed" in row.headings:
            old, new = (_names(row.cells[side]) for side in ("old", "new"))
            pairs |= {(before, after) for before in old for after in new}
    expected = {pair for keys in RENAMED.values() for pair in keys.items()} | set(RENAMED_OPTIONS.items())
    missing = sorted(f"{old} -> {new}" for old, new in expected - pairs)
    assert not missing


def _names(cell: str) -> list[str]:
    """The keys in a cell: the first word of code spans (`` `probe: auto, again` `` is about `probe`), and keys in braces."""
    names = []
    for span in markdown.ticked(cell):
        head, _, rest = span.replace(" ", "").partition(":")
        names.append(head if not head.startswith("--") else span.split()[0])
        names += rest.strip("{}").split(",") if rest.startswith("{") else []
    return names

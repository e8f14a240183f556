"""What the documents say about the doctor."""

from fledge.diagnosis.causes import CAUSES
from fledge.doctor.evidence_series import SERIES
from tests.support import markdown


def test_the_table_of_causes_has_every_cause_in_its_category() -> None:
    tables = markdown.tables(markdown.ROOT / "docs" / "doctor.md")
    rows = {row.cells["category"]: row.cells["causes"] for row in tables if set(row.cells) == {"category", "causes"}}
    told = {category: causes.split(", ") for category, causes in rows.items() if category in {one.category for one in CAUSES}}
    assert {name for names in told.values() for name in names} == {one.name for one in CAUSES}
    assert all(one.name in told[one.category] for one in CAUSES)


def test_the_figures_that_show_a_finding_are_by_categories_that_exist() -> None:
    assert set(SERIES) <= {one.category for one in CAUSES}

"""Parsing of rows by a short name for each type of item."""

from typing import Any

from fledge.data.parsing import rows
from fledge.data.parsing.items import Item
from fledge.recipe.schema import Source

PARSERS = {
    "pretrain": rows.parse_document,
    "sft": rows.parse_conversation,
    "preference": rows.parse_preference_pair,
    "label": rows.parse_binary_feedback,
}


def parse_row(row: Any, source: Source, kind: str, system: str | None = None) -> Item:
    """The item of a row, read as this kind. RowError if the row cannot be used."""
    return rows.parse_row(row, source, PARSERS[kind], system)

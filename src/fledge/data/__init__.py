"""From files to batches: row -> item -> example -> packed row -> batch, with a ledger of every row."""

from fledge.data.batches import Batch, PackedData
from fledge.data.building.build import Collected, StageData, collect, encode, is_complete, open_built, texts
from fledge.data.ledger import Ledger
from fledge.data.rows.items import Conversation, Document, Labelled, Preference

__all__ = [
    "Batch",
    "Collected",
    "Conversation",
    "Document",
    "Labelled",
    "Ledger",
    "PackedData",
    "Preference",
    "StageData",
    "collect",
    "encode",
    "is_complete",
    "open_built",
    "texts",
]

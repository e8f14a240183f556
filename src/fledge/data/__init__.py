"""From files to batches: row -> document, conversation or preference -> example -> packed row -> batch, with a ledger."""

from fledge.data.batches import Batch, PackedData
from fledge.data.items import Conversation, Document, Preference
from fledge.data.ledger import Ledger
from fledge.data.prepare import Collected, StageData, collect, encode, texts

__all__ = [
    "Batch",
    "Collected",
    "Conversation",
    "Document",
    "Ledger",
    "PackedData",
    "Preference",
    "StageData",
    "collect",
    "encode",
    "texts",
]

"""From files to batches: row -> item -> example -> packed row -> batch, with a ledger of every row."""

from fledge.data.batches import Batch, PackedData, Skipped, passed_over
from fledge.data.building.build import Collected, collect, encode, texts
from fledge.data.building.folder import is_complete
from fledge.data.building.opening import StageData, open_built
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
    "Skipped",
    "StageData",
    "collect",
    "encode",
    "is_complete",
    "open_built",
    "passed_over",
    "texts",
]

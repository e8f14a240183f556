"""From files to batches: row -> item -> example -> packed row -> batch, with a ledger of every row."""

from fledge.data.batches import Batch, PackedDataset, Skipped, skip_offset
from fledge.data.building.build import CollectedRows, collect, encode, texts
from fledge.data.building.folder import is_complete
from fledge.data.building.opening import StageDataset, load_built_dataset
from fledge.data.ledger import DataReport
from fledge.data.rows.items import BinaryFeedback, Conversation, Document, PreferencePair

__all__ = [
    "Batch",
    "BinaryFeedback",
    "CollectedRows",
    "Conversation",
    "DataReport",
    "Document",
    "PackedDataset",
    "PreferencePair",
    "Skipped",
    "StageDataset",
    "collect",
    "encode",
    "is_complete",
    "load_built_dataset",
    "skip_offset",
    "texts",
]

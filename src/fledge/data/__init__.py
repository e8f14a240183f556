"""From files to batches: row -> item -> example -> packed row -> batch, with a ledger of every row."""

from fledge.data.build.build import CollectedRows, collect, encode, texts
from fledge.data.build.folder import is_complete
from fledge.data.build.load import StageDataset, load_built_dataset
from fledge.data.dataset.batches import Batch, PackedDataset, Skipped, skip_offset
from fledge.data.parsing.rows import BinaryFeedback, Conversation, Document, PreferencePair
from fledge.data.report import DataReport

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

"""Data preparation: record -> row -> item -> example -> packed row -> batch, with a report of every row."""

from typing import TYPE_CHECKING

from fledge.lazy import lazy_names

if TYPE_CHECKING:
    from fledge.data.build.build import CollectedRows, collect, encode
    from fledge.data.build.directory import is_complete
    from fledge.data.build.load import StageDataset, load_built_dataset
    from fledge.data.dataset.batch import Batch
    from fledge.data.dataset.packed_dataset import PackedDataset, Skipped, skip_offset
    from fledge.data.formats import FORMATS, ExampleFormat
    from fledge.data.parsing.items import BinaryFeedback, Conversation, Document, PreferencePair
    from fledge.data.report import DataReport

_HOMES = {
    "fledge.data.build.build": ("CollectedRows", "collect", "encode"),
    "fledge.data.build.directory": ("is_complete",),
    "fledge.data.build.load": ("StageDataset", "load_built_dataset"),
    "fledge.data.dataset.batch": ("Batch",),
    "fledge.data.dataset.packed_dataset": ("PackedDataset", "Skipped", "skip_offset"),
    "fledge.data.formats": ("ExampleFormat", "FORMATS"),
    "fledge.data.parsing.items": ("BinaryFeedback", "Conversation", "Document", "PreferencePair"),
    "fledge.data.report": ("DataReport",),
}

__all__ = [
    "FORMATS",
    "Batch",
    "BinaryFeedback",
    "CollectedRows",
    "Conversation",
    "DataReport",
    "Document",
    "ExampleFormat",
    "PackedDataset",
    "PreferencePair",
    "Skipped",
    "StageDataset",
    "collect",
    "encode",
    "is_complete",
    "load_built_dataset",
    "skip_offset",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)

"""A run on disk and on screen: its directory, events, alerts, environment, and what the terminal shows."""

from fledge.run.console import Console, Log, silent
from fledge.run.directory import RunDirectory, StageDirectory, check_layout, resolve_model_path
from fledge.run.environment import environment, memory_bytes, peak_memory_bytes
from fledge.run.events import EventLog, nan_to_none, read_events
from fledge.run.lock import exclusive_lock
from fledge.run.text_files import read_json, write_json, write_text

__all__ = [
    "Console",
    "EventLog",
    "Log",
    "RunDirectory",
    "StageDirectory",
    "check_layout",
    "environment",
    "exclusive_lock",
    "memory_bytes",
    "nan_to_none",
    "peak_memory_bytes",
    "read_events",
    "read_json",
    "resolve_model_path",
    "silent",
    "write_json",
    "write_text",
]

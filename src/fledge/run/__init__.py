"""What happened: the run directory, its events, the machine it ran on, and what the terminal shows."""

from fledge.run.console import Console
from fledge.run.directory import RunDirectory, StageDirectory, resolve_model_path, write_json, write_text
from fledge.run.environment import environment, memory_bytes, peak_memory_bytes
from fledge.run.events import EventLog, nan_to_none, read_events
from fledge.run.lock import exclusive_lock

__all__ = [
    "Console",
    "EventLog",
    "RunDirectory",
    "StageDirectory",
    "environment",
    "exclusive_lock",
    "memory_bytes",
    "nan_to_none",
    "peak_memory_bytes",
    "read_events",
    "resolve_model_path",
    "write_json",
    "write_text",
]

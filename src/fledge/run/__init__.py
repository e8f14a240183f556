"""What happened: the run directory, its events, the machine it ran on, and what the terminal shows."""

from fledge.run.console import Console
from fledge.run.directory import RunDirectory, StageDirectory, find_model, write_json, write_text
from fledge.run.environment import environment, memory_bytes, peak_memory_bytes
from fledge.run.events import EventLog, finite, read_events
from fledge.run.lock import only_one

__all__ = [
    "Console",
    "EventLog",
    "RunDirectory",
    "StageDirectory",
    "environment",
    "find_model",
    "finite",
    "memory_bytes",
    "only_one",
    "peak_memory_bytes",
    "read_events",
    "write_json",
    "write_text",
]

"""The cache of this machine: benchmark results and compiled code that later runs use again.

The cache may be deleted at any time. A cached figure that decides how a run computes is written into the run as well.
"""

import json
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import xxhash

from fledge.errors import FledgeError
from fledge.run.console import Log
from fledge.run.text_files import write_text

FORMAT = 1


def cache_folder() -> Path:
    """The cache folder: $FLEDGE_CACHE, else `fledge` in $XDG_CACHE_HOME, else ~/.cache/fledge. The folder may not exist
    yet."""
    fledge_cache, xdg_cache = os.environ.get("FLEDGE_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if fledge_cache:
        return Path(fledge_cache).expanduser()
    return (Path(xdg_cache).expanduser() if xdg_cache else Path.home() / ".cache") / "fledge"


class BenchmarkCache:
    """Figures by name, cached for one `key`. Each figure is measured at most once, in this run or in an earlier one.

    `key`: everything that the figures depend on, besides their names. A damaged file, a file with another key and a folder that
    cannot be written are reported by `log`; the figures are then measured again. `remeasure`: ignore the stored figures.
    `is_busy`: the machine is busy now, so figures are rough: they are stored as such, and used as long as the machine is busy.
    """

    def __init__(
        self, key: Mapping[str, Any], log: Log = lambda text: None, *, remeasure: bool = False, is_busy: bool = False
    ) -> None:
        self.is_busy = is_busy
        self.key = json.loads(json.dumps(key))
        self.file = cache_folder() / "measured" / f"{self._hash()}.json"
        self._log = log
        self._values: dict[str, Any] = {}
        self.measured_at: str | None = None  # time of the stored figures, ISO 8601
        self.new: list[str] = []  # names of the figures measured now
        self.recalled: list[str] = []  # names of the figures read from the file
        if not remeasure:
            self._read()

    def _hash(self) -> str:
        return xxhash.xxh3_128_hexdigest(json.dumps(self.key, sort_keys=True).encode())

    def _read(self) -> None:
        try:
            stored = json.loads(self.file.read_text(encoding="utf-8"))
            if stored["format"] != FORMAT or stored["key"] != self.key or not isinstance(stored["values"], dict):
                raise ValueError("it is of another machine or version")
            if stored.get("rough") and not self.is_busy:
                return
            self.measured_at, self._values = str(stored["when"]), stored["values"]
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._log(f"note: {self.file} is not used ({type(error).__name__}: {error}); measuring again")

    def __contains__(self, name: str) -> bool:
        """Whether the figure of this name is known."""
        return name in self._values

    def get_or_measure(self, name: str, measure: Callable[[], Any]) -> Any:
        """The figure of this name: the stored figure, or else the result of `measure` (any JSON value)."""
        if name in self._values:
            if name not in self.new and name not in self.recalled:
                self.recalled.append(name)
            return self._values[name]
        self._values[name] = measure()
        self.new.append(name)
        return self._values[name]

    def save(self) -> None:
        """Write the file when there are new figures. A failure is logged, not raised."""
        if not self.new:
            return
        self.measured_at = datetime.now(UTC).isoformat(timespec="seconds")
        content = {"format": FORMAT, "when": self.measured_at, "rough": self.is_busy, "key": self.key, "values": self._values}
        try:
            write_text(self.file, json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
        except FledgeError as error:
            self._log(f"note: measurements are not kept for the next run: {error.what} ({error.where})")

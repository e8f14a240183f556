"""What is worth keeping on this machine between runs: measurements, and what the compiler made.

It may be deleted at any time. Nothing of it decides what a run computes without being written into the run as well.
"""

import json
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import xxhash

from fledge.errors import FledgeError
from fledge.run.directory import write_text

Say = Callable[[str], None]
FORMAT = 1


def cache_folder() -> Path:
    """$FLEDGE_CACHE, else fledge's folder in $XDG_CACHE_HOME, else ~/.cache/fledge. It need not exist."""
    own, shared = os.environ.get("FLEDGE_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own).expanduser()
    return (Path(shared).expanduser() if shared else Path.home() / ".cache") / "fledge"


class BenchmarkCache:
    """Figures by name, kept in the cache for one `key`; each is measured at most once, here or in an earlier run.

    The key is everything that the figures depend on and their names do not say. A file that is damaged, or of another
    key, is left aside with a note, and so is a folder that cannot be written: then the figures are measured again.
    """

    def __init__(self, key: Mapping[str, Any], say: Say = lambda text: None, again: bool = False) -> None:
        self.key = json.loads(json.dumps(key))
        self.file = cache_folder() / "measured" / f"{self._hash()}.json"
        self._say = say
        self._values: dict[str, Any] = {}
        self.when: str | None = None  # the stored figures were measured
        self.new: list[str] = []  # names measured here
        self.recalled: list[str] = []  # names answered from the file
        if not again:
            self._read()

    def _hash(self) -> str:
        return xxhash.xxh3_128_hexdigest(json.dumps(self.key, sort_keys=True).encode())

    def _read(self) -> None:
        try:
            stored = json.loads(self.file.read_text(encoding="utf-8"))
            if stored["format"] != FORMAT or stored["key"] != self.key or not isinstance(stored["values"], dict):
                raise ValueError("it is of another machine or version")
            self.when, self._values = str(stored["when"]), stored["values"]
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._say(f"note: {self.file} is not used ({type(error).__name__}: {error}); measuring again")

    def get_or_measure(self, name: str, measure: Callable[[], Any]) -> Any:
        """The figure of this name: the stored one, else what `measure` finds (anything that JSON holds)."""
        if name in self._values:
            if name not in self.new and name not in self.recalled:
                self.recalled.append(name)
            return self._values[name]
        self._values[name] = measure()
        self.new.append(name)
        return self._values[name]

    def keep(self) -> None:
        """Write what is new for the next run."""
        if not self.new:
            return
        self.when = datetime.now(UTC).isoformat(timespec="seconds")
        content = {"format": FORMAT, "when": self.when, "key": self.key, "values": self._values}
        try:
            write_text(self.file, json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
        except FledgeError as error:
            self._say(f"note: measurements are not kept for the next run: {error.what} ({error.where})")

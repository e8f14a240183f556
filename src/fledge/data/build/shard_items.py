"""The items of one shard as the phase `rows` left them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fledge.data.build.phases import phase_result
from fledge.data.build.shards import Shard
from fledge.data.parsing.row_statistics import own_text
from fledge.data.parsing.rows import from_bytes
from fledge.data.reading.records import row_location
from fledge.data.storage import load_arrays


@dataclass(frozen=True)
class ShardRows:
    """What is known of the items of one shard: their arrays (rows.safetensors), and the files they come from."""

    shard: Shard
    folder: Path
    arrays: dict[str, np.ndarray]
    files: list[str]
    signatures: str | None

    @classmethod
    def of(cls, folder: Path, shard: Shard) -> "ShardRows":
        """Those of a shard of a build directory."""
        rows = folder / "rows" / shard.folder
        done = phase_result(rows)
        return cls(shard, rows, load_arrays(rows / "rows.safetensors"), done["files"], done["signatures"])

    def __len__(self) -> int:
        return len(self.arrays["row"])

    def where(self, index: int) -> str:
        """file:line of an item."""
        return row_location(self.files[int(self.arrays["file"][index])], int(self.arrays["number"][index]))

    def text(self, index: int) -> str:
        """The text of an item, read from disk."""
        start, stop = (int(value) for value in self.arrays["start"][index : index + 2])
        with (self.folder / "items.jsonl").open("rb") as file:
            file.seek(start)
            return own_text(from_bytes(file.read(stop - start)))

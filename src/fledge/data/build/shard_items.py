"""The items of one shard as the read phase wrote them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fledge.data.build.directory import BuildDirectory
from fledge.data.build.phase_output import read_rows_result
from fledge.data.build.plan import Shard
from fledge.data.parsing.items import Item, deserialize, own_text
from fledge.data.reading.records import row_location
from fledge.data.storage import load_arrays


@dataclass(frozen=True)
class ShardItems:
    """The N items of one shard: `arrays` (rows.safetensors), the `files` that they come from, and the library that computed
    their MinHash signatures (None: there are none).

    `arrays`: row [N] (number of the row in the shard), file [N] (number of its file in `files`), number [N] (line or index
    in the file), start [N + 1] (byte offsets in items.jsonl), hash [N, 2] (of the content), draw [N] (random number that
    decides training or validation), chars [N] (length of the texts), language [N] (index in LANGUAGES)."""

    shard: Shard
    folder: Path
    arrays: dict[str, np.ndarray]
    files: list[str]
    signature_library: str | None

    @classmethod
    def of(cls, build: BuildDirectory, shard: Shard) -> "ShardItems":
        """The items of a shard whose read phase is finished."""
        folder = build.rows(shard)
        result = read_rows_result(folder)
        return cls(shard, folder, load_arrays(folder / "rows.safetensors"), result["files"], result["signatures"])

    def __len__(self) -> int:
        return len(self.arrays["row"])

    def row(self, index: int) -> int:
        """Number of the row of an item in the shard."""
        return int(self.arrays["row"][index])

    def location(self, index: int) -> str:
        """FILE:LINE of the row of an item."""
        return row_location(self.files[int(self.arrays["file"][index])], int(self.arrays["number"][index]))

    def read(self, mask: np.ndarray | None = None) -> Iterator[Item]:
        """The items in order: all, or those that `mask` (bool [N]) marks."""
        with (self.folder / "items.jsonl").open("rb") as lines:
            for index, line in enumerate(lines):
                if mask is None or mask[index]:
                    yield deserialize(line)

    def text(self, index: int) -> str:
        """The own text of one item, read from disk."""
        start, stop = (int(value) for value in self.arrays["start"][index : index + 2])
        with (self.folder / "items.jsonl").open("rb") as file:
            file.seek(start)
            return own_text(deserialize(file.read(stop - start)))

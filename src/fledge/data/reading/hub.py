"""Rows of a dataset on the Hugging Face hub, streamed with the library `datasets` (extra `hub`)."""

from collections.abc import Iterator, Mapping

from fledge.data.reading.formats import ColumnarRow, Record
from fledge.errors import FledgeError, missing_extra
from fledge.recipe.schema import Source


def read_hub(source: Source, key: str) -> Iterator[Record]:
    """The rows of `source.hub` in the hub's order, numbered from 0. `key`: the recipe key that errors name.

    Only rows that are consumed are downloaded. Raises FledgeError for any failure of the library: an unknown dataset, subset or
    split, a network failure, rows that cannot be decoded.
    """
    try:
        import datasets
    except ImportError:
        raise missing_extra("datasets", "hub", f"reading '{source.hub}' from a hub") from None
    number = -1
    try:
        rows = datasets.load_dataset(str(source.hub), source.subset, split=source.split or "train", streaming=True)
        for number, row in enumerate(rows):
            yield Record(number, ColumnarRow(row) if isinstance(row, Mapping) else row)
    except Exception as error:  # the library, its formats and the network raise many types
        position = f" after row {number}" if number >= 0 else ""
        message = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise FledgeError(
            f"cannot read the dataset '{source.hub}'{position}: {message}",
            where=key,
            hint="check hub, subset and split, and the network; or download it and name its files in path",
        ) from None

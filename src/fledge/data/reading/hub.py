"""Rows of a dataset of the Hugging Face hub, streamed through the library `datasets` (extra `hub`)."""

from collections.abc import Iterator

from fledge.data.reading.formats import Record
from fledge.errors import FledgeError, missing_extra
from fledge.recipe.schema import Source


def read_hub(source: Source, key: str) -> Iterator[Record]:
    """The rows of `source.hub` in the hub's order, counted from 0. `key` is the recipe key that errors name.

    Nothing is downloaded but what is read. FledgeError for whatever the library refuses: a dataset, subset or split that does
    not exist, a network that does not answer, rows that cannot be decoded.
    """
    try:
        import datasets
    except ImportError:
        raise missing_extra("datasets", "hub", f"reading '{source.hub}' from a hub") from None
    number = -1
    try:
        rows = datasets.load_dataset(str(source.hub), source.subset, split=source.split or "train", streaming=True)
        for number, row in enumerate(rows):
            yield Record(number, row)
    except Exception as error:  # the library, its formats and the network fail in more ways than can be named
        place = f" behind row {number}" if number >= 0 else ""
        said = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise FledgeError(
            f"cannot read the dataset '{source.hub}'{place}: {said}",
            where=key,
            hint="check hub, subset and split, and the network; or download it and name its files in path",
        ) from None

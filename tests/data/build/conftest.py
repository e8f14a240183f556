"""A tokenizer for the documents of `tests.support.documents`, and small shards."""

import pytest

from fledge.data.build import plan
from fledge.tokenizer import Tokenizer, train_tokenizer
from tests.support.documents import documents


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A tokenizer of 320 tokens, trained on the documents."""
    return train_tokenizer((row["text"] for row in documents(50)), 320)


@pytest.fixture()
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes shards of 6,000 bytes, so that little data gives several."""
    monkeypatch.setattr(plan, "SHARD_BYTES", 6000)

"""One tokenizer for each kind of chat template."""

import pytest

from fledge.tokenizer import Tokenizer
from tests.support.conversations import MARKED, UNMARKED
from tests.support.templates import with_template


@pytest.fixture(scope="session")
def tokenizers(chatml: Tokenizer, inst: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """One tokenizer for each kind of template."""
    tokenizers = {"chatml": chatml, "inst": inst}
    for name, jinja in (("unmarked", UNMARKED), ("marked", MARKED)):
        tokenizers[name] = with_template(chatml, tmp_path_factory.mktemp(name), jinja)
    return tokenizers

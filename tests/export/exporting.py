"""Small models with a trained tokenizer, written to directories."""

from pathlib import Path

from fledge.tokenizer import Tokenizer, train_tokenizer
from tests.support.decoders import make_decoder

TEXTS = ["The fox met the crow, it's 12:30. Don't stop!", "小猫坐在窗边看雨，雨停了。", "def f(x): return x + 1\n"] * 4


def tokenizer(template: str = "chatml") -> Tokenizer:
    """A tokenizer of 300 tokens."""
    return train_tokenizer(TEXTS, 300, template)


def write_model(folder: Path, template: str = "chatml", **changes: object) -> Path:
    """A model directory with random weights; `changes`: of the sizes."""
    own = tokenizer(template)
    sizes = {"max_position_embeddings": 128, **changes}
    model = make_decoder(vocab=own.vocab_size, **sizes)
    model.save_pretrained(folder, bos=own.bos_id, eos=sorted(own.stop_ids), pad=own.pad)
    own.save(folder)
    return folder

"""Writing a model directory with its tokenizer."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fledge.model.protocol import LanguageModel
from fledge.tokenizer import Tokenizer


def save_with_tokenizer(
    model: LanguageModel, tokenizer: Tokenizer, folder: Path, weights: Mapping[str, Tensor] | None = None
) -> None:
    """Write model and tokenizer, which says the special tokens; of the tokens that end an answer, that of a turn comes first.

    `weights` and errors as in `LanguageModel.save_pretrained`.
    """
    stops = sorted(tokenizer.stop_ids, key=lambda token: token != tokenizer.eot_id)
    model.save_pretrained(folder, bos=tokenizer.bos_id, eos=stops, pad=tokenizer.pad, weights=weights)
    tokenizer.save(folder)

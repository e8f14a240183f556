"""The engine and the tokenizer of a model directory."""

from collections.abc import Callable
from pathlib import Path

from fledge.errors import FledgeError
from fledge.generation.engine import MAX_BATCH_SIZE, Engine
from fledge.model.loading import load_model
from fledge.model.protocol import LanguageModel
from fledge.tokenizer import Tokenizer, load_tokenizer


def load_engine(
    folder: Path, log: Callable[[str], None] = lambda text: None, max_batch_size: int = MAX_BATCH_SIZE
) -> tuple[Engine, Tokenizer]:
    """The engine of a model directory, and its tokenizer. `log` receives notes about the model.

    Raises FledgeError if there is no model, or if the tokenizer has more tokens than the model.
    """
    model, tokenizer = load_model_and_tokenizer(folder, log)
    return Engine(model.eval(), tokenizer.stop_ids, max_batch_size=max_batch_size), tokenizer


def load_model_and_tokenizer(folder: Path, log: Callable[[str], None] = lambda text: None) -> tuple[LanguageModel, Tokenizer]:
    """The model of a model directory, and its tokenizer. FledgeError as `load_engine`."""
    model = load_model(folder, log=log)
    base = None if model.adapter is None else model.adapter.base
    has_own = base is None or (folder / "tokenizer.json").exists()  # an adapter of PEFT may have the tokenizer of its base
    tokenizer = load_tokenizer(folder if has_own or base is None else base, needs_template=False)
    if tokenizer.vocab_size > model.vocab_size:
        unknown = tokenizer.tokens_from(model.vocab_size)
        trainable = all(is_added for _, is_added in unknown)
        raise FledgeError(
            f"the model knows {model.vocab_size:,} tokens, its tokenizer has {tokenizer.vocab_size:,}: it has no rows for "
            + ", ".join(text for text, _ in unknown[:5]),
            where=str(folder),
            hint="fine-tune it first: training adds the missing rows" if trainable else "use the tokenizer of this model",
        )
    return model, tokenizer

"""A tokenizer with a chat template of its own."""

import json
from pathlib import Path
from typing import Any

from fledge.tokenizer import Tokenizer, load_tokenizer


def with_template(tokenizer: Tokenizer, folder: Path, jinja: str, **config: Any) -> Tokenizer:
    """The tokenizer with this Jinja template, saved and loaded again; `config` changes tokenizer_config.json."""
    tokenizer.core.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": jinja, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return load_tokenizer(folder)

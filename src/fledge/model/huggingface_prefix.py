"""A prefix (`prefix.py`) before the tokens of a model of transformers, as a cache of the library that already holds keys and
values. Beside a cache the library no longer keeps packed documents apart by their positions, so they are kept apart by a mask.
"""

from typing import Any

import torch
from torch import Tensor

from fledge.errors import FledgeError, first_line
from fledge.model.prefix import Prefix
from fledge.model.probe import is_near, probe_documents


def new_cache(config: Any, prefix: Prefix | None, rows: int, dtype: torch.dtype) -> Any:
    """A new cache of the library for `rows` sequences, which begins with the keys and values of a prefix. Gradients reach the
    prefix."""
    from transformers import DynamicCache

    cache = DynamicCache(config=config)
    if prefix is None:
        return cache
    for layer, (keys, values) in enumerate(prefix.keys_and_values(dtype)):
        cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
    return cache


def prefixed_mask(prefix: Prefix, tokens: Tensor, documents: Tensor | None) -> Tensor:
    """What each position of tokens [B, T] attends to: the prefix and the earlier positions of its document, bool
    [B, 1, T, P + T]."""
    mask = prefix.mask(documents, tokens)
    return mask if mask.dim() == 4 else mask.expand(len(tokens), 1, -1, -1)


def check_attention_spans(config: Any) -> None:
    """FledgeError for a configuration whose layers do not all attend to every earlier position: the library's mask for those
    would be replaced."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    others = {type(layer).__name__ for layer in DynamicCache(config=config).layers if type(layer) is not DynamicLayer}
    if others:
        raise no_prefix(f"not all of its layers attend to every earlier position (they keep a {', '.join(sorted(others))})")


def no_prefix(reason: str) -> FledgeError:
    """The error of a model that cannot have a prefix."""
    return FledgeError(
        f"this model, which transformers computes, cannot have a prefix: {reason}", where="adapter.peft_type", hint="train LORA"
    )


@torch.no_grad()
def check_prefix(model: Any) -> None:
    """Test a model of transformers that has just got a prefix on random tokens. Raises FledgeError if the library does not
    compute it, if the prefix changes nothing, or if documents of a packed row are not computed as each one alone is by the
    library's own mask."""
    made, documents = probe_documents(model)
    each, prefix = [document.to(model.device) for document in made], model.prefix
    try:
        packed = model(torch.cat(each, dim=1), None, documents.to(model.device))
        alone = torch.cat([_by_the_library(model, document) for document in each], dim=1)
        model.prefix = None
        plain = torch.cat([model(document) for document in each], dim=1)
    except Exception as error:  # the library raises errors of many kinds
        raise no_prefix(f"transformers raises {type(error).__name__}: {first_line(error)}") from error
    finally:
        model.prefix = prefix
    if is_near(plain, alone):
        raise no_prefix("keys and values before its tokens change nothing")
    if not is_near(packed, alone):
        raise no_prefix("the documents of a packed row are not kept apart behind it")


def _by_the_library(model: Any, document: Tensor) -> Tensor:
    """The hidden states of one document [1, T] behind the prefix, with the library's own mask and positions."""
    return model.causal_lm.base_model(input_ids=document, past_key_values=model.new_cache(1), use_cache=True).last_hidden_state

"""Loading of model directories in the Hugging Face layout as native decoders.

Transformers can load the output of `Decoder.save_pretrained`, and this module can load the output of transformers for a
supported architecture (`hf_config.ARCHITECTURES`).
"""

from pathlib import Path

import torch
from torch import Tensor

from fledge.errors import FledgeError
from fledge.model.cost import parameters
from fledge.model.decoder import Decoder
from fledge.model.hf_config import TRANSFORMERS_HINT, read_config
from fledge.model.weight_files import EMBEDDING, HEAD, check_finite, check_type, own_head_error, read_tensors, shard_files
from fledge.model.weights import file_tensors, read_generation_settings

DERIVED = ".rotary_emb.inv_freq"  # end of the names of tensors that older files have and that follow from config.json


def from_pretrained(folder: str | Path, device: torch.device | str = "cpu", finite: bool = True) -> Decoder:
    """Load a model directory as a native decoder with float32 parameters.

    Raises FledgeError for files that are missing, unreadable or truncated; for tensors that are missing, surplus, of another
    shape or of integers; for a head of its own where config.json ties the head to the embedding; and, if `finite`, for values
    that are not finite.
    """
    folder = Path(folder)
    config, vocab_size = read_config(folder)
    shards = shard_files(folder)
    stored, wanted = sum(shard.stat().st_size for shard in shards), parameters(config, vocab_size).total
    if wanted > stored:  # before the memory for it is allocated
        raise FledgeError(
            f"config.json describes {wanted:,} parameters, more than the {stored:,} bytes of weights can hold",
            where=str(folder),
        )
    model = Decoder(config, vocab_size)
    model.generation_settings = read_generation_settings(folder)
    expected = file_tensors(model.state_dict())
    missing, surplus, head = dict(expected), list[str](), None
    for shard in shards:
        for name, tensor in read_tensors(shard):
            if name == HEAD and config.tie_word_embeddings:
                head = tensor
            elif name not in missing:
                surplus += [] if name.endswith(DERIVED) else [name]
            else:
                _copy(tensor, missing.pop(name), name, shard)
                if finite:
                    check_finite(name, tensor, shard)
    if missing or surplus:
        problem = f"missing {sorted(missing)[:3]}" if missing else f"unknown {sorted(surplus)[:3]}"
        hint = None if missing else TRANSFORMERS_HINT
        raise FledgeError(f"the weights do not fit the configuration: {problem}", where=str(folder), hint=hint)
    if head is not None and not torch.equal(head.float(), expected[EMBEDDING]):
        raise own_head_error(folder)
    return model.to(device)


@torch.no_grad()
def _copy(tensor: Tensor, target: Tensor, name: str, shard: Path) -> None:
    """Copy a tensor of a file into the model. Raises FledgeError if it is not a weight of this shape."""
    if tensor.shape != target.shape:
        raise FledgeError(f"{name} is {list(tensor.shape)}, expected {list(target.shape)}", where=str(shard))
    check_type(name, tensor, shard)
    target.copy_(tensor)

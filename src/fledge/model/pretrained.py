"""Loading of model directories in the Hugging Face layout as native decoders.

Transformers can load the output of `Decoder.save_pretrained`, and this module can load the output of transformers for a
supported architecture (`hf_config.ARCHITECTURES`).
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from fledge.errors import FledgeError
from fledge.model.decoder import Decoder
from fledge.model.hf_config import read_config
from fledge.model.weights import file_tensors, read_generation_settings, shard_files


def from_pretrained(folder: str | Path, device: torch.device | str = "cpu") -> Decoder:
    """Load a model directory as a native decoder with float32 parameters.

    Raises FledgeError for missing or truncated files, and for tensors that are missing, surplus or of another shape.
    """
    folder = Path(folder)
    config, vocab_size = read_config(folder)
    model = Decoder(config, vocab_size)
    model.generation_settings = read_generation_settings(folder)
    missing = file_tensors(model.state_dict())
    surplus = []
    for shard in shard_files(folder):
        try:
            with safe_open(shard, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    if name not in missing:
                        surplus.append(name)
                        continue
                    tensor = file.get_tensor(name)
                    target = missing.pop(name)
                    if tensor.shape != target.shape:
                        raise FledgeError(f"{name} is {list(tensor.shape)}, expected {list(target.shape)}", where=str(shard))
                    with torch.no_grad():
                        target.copy_(tensor)
        except SafetensorError as error:
            raise FledgeError(f"the weights are damaged or truncated: {error}", where=str(shard)) from None
    surplus = [name for name in surplus if not (name == "lm_head.weight" and config.tie_word_embeddings)]
    if missing or surplus:
        problem = f"missing {sorted(missing)[:3]}" if missing else f"unknown {sorted(surplus)[:3]}"
        raise FledgeError(f"the weights do not fit the configuration: {problem}", where=str(folder))
    return model.to(device)

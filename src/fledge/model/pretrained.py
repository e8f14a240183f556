"""Loading of model directories in the Hugging Face layout as native decoders.

Transformers can load the output of `Decoder.save_pretrained`, and this module can load the output of transformers for a
supported architecture (`hf_config.ARCHITECTURES`).
"""

from pathlib import Path

import torch

from fledge.errors import FledgeError
from fledge.model.cost import parameters
from fledge.model.decoder import Decoder
from fledge.model.frozen_weights import quantize_layer
from fledge.model.hf_config import TRANSFORMERS_HINT, is_classifier, read_config
from fledge.model.protocol import matrix_layers
from fledge.model.weight_files import (
    EMBEDDING,
    HEAD,
    WeightHeaders,
    check_finite,
    check_sizes,
    check_stored_type,
    own_head_error,
    read_headers,
    read_tensors,
)
from fledge.model.weights import file_tensors, read_generation_settings
from fledge.recipe.schema import ModelConfig, QuantizationConfig

DERIVED = ".rotary_emb.inv_freq"  # end of the names of tensors that older files have and that follow from config.json


def from_pretrained(
    folder: str | Path,
    device: torch.device | str = "cpu",
    finite: bool = True,
    quantization: QuantizationConfig | None = None,
) -> Decoder:
    """Load a model directory as a native decoder with float32 parameters. With `quantization` each matrix inside a block is put
    into 4 bits as soon as it is read, so that no more than one of them is in memory in float32.

    Raises FledgeError for files that are missing, unreadable or truncated; for tensors that are missing, surplus, of another
    shape or of integers; for a head of its own where config.json ties the head to the embedding; and, if `finite`, for values
    that are not finite. All but the last two are told from the headers, before memory is allocated.
    """
    folder = Path(folder)
    (config, vocab_size), has_score = read_config(folder), is_classifier(folder)
    headers = read_headers(folder)
    check_sizes(headers, parameters(config, vocab_size, not has_score).total, folder)
    expected = _check_tensors(headers, config, vocab_size, has_score, folder)
    model = Decoder(config, vocab_size, has_score=has_score)
    model.generation_settings = read_generation_settings(folder)
    targets, head = file_tensors(model.state_dict()), None
    layers = {} if quantization is None else {model.file_name(f"{name}.weight"): name for name in matrix_layers(model)}
    for shard in headers.files:
        for name, tensor in read_tensors(shard):
            if name == HEAD and name not in expected:
                head = tensor
            elif name in expected:
                with torch.no_grad():
                    targets[name].copy_(tensor)
                if finite:
                    check_finite(name, tensor, shard)
                if quantization is not None and name in layers:
                    del targets[name]
                    quantize_layer(model, layers[name], quantization)
    if head is not None and not torch.equal(head.float(), targets[EMBEDDING]):
        raise own_head_error(folder)
    return model.to(device)


def file_shapes(config: ModelConfig, vocab_size: int, has_score: bool = False) -> dict[str, tuple[int, ...]]:
    """The shapes of a decoder's tensors by their names in the files; `has_score`: of a reward model. Nothing is allocated."""
    with torch.device("meta"):
        decoder = Decoder(config, vocab_size, has_score=has_score)
    return {name: tuple(tensor.shape) for name, tensor in file_tensors(decoder.state_dict()).items()}


def _check_tensors(
    headers: WeightHeaders, config: ModelConfig, vocab_size: int, has_score: bool, folder: Path
) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the decoder's tensors. FledgeError if the files have others."""
    expected = file_shapes(config, vocab_size, has_score)
    missing = sorted(name for name in expected if name not in headers.tensors)
    ignored = {HEAD} if config.tie_word_embeddings and not has_score else set()
    others = (name for name in headers.tensors if name not in expected and name not in ignored)
    surplus = sorted(name for name in others if not name.endswith(DERIVED))
    if missing or surplus:
        problem = f"missing {missing[:3]}" if missing else f"unknown {surplus[:3]}"
        total = parameters(config, vocab_size, not has_score).total
        raise FledgeError(
            f"the weights do not fit the configuration: {problem} (it describes {total:,} parameters, the files have "
            f"{headers.numbers:,})",
            where=str(folder),
            hint=None if missing else TRANSFORMERS_HINT,
        )
    for name, shape in expected.items():
        found = headers.tensors[name]
        if found.shape != shape:
            raise FledgeError(f"{name} is {list(found.shape)}, expected {list(shape)}", where=str(found.file))
        check_stored_type(name, found)
    return expected

"""Comparing a GGUF file with fledge, by computing with it in llama.cpp."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from fledge.errors import FledgeError
from fledge.export.comparison import (
    check_all_tokens,
    check_difference,
    difference,
    prompts,
    scored_sequences,
    tokenised_texts,
)
from fledge.export.gguf_file import GgufFile, stored_values
from fledge.export.source import ExportSource
from fledge.export.weight_types import WeightType
from fledge.generation import score_tokens
from fledge.tokenizer import Tokenizer

PROGRAM = "llama.cpp"
NOT_VERIFIED = "not verified: llama.cpp is not installed; pip install 'fledge[llama-cpp]', and export again"


def verify_with_llama_cpp(file: GgufFile, source: ExportSource, weight_type: WeightType) -> list[str]:
    """Lines about the comparison of a file with its model. The weights of `source` become those of the file.

    Raises FledgeError if llama.cpp cannot load the file, makes other tokens of a text or conversation, or computes other
    log-probabilities from the weights of the file than fledge does.
    """
    if find_spec("xllamacpp") is None:
        return [NOT_VERIFIED]
    where, sequences = str(file.path), scored_sequences(source.tokenizer, source.model.config.max_position_embeddings)
    answer = _ask(file.path, _request(source, sequences))
    equal = check_all_tokens(PROGRAM, source.tokenizer, answer["texts"], answer["conversations"], where)
    before = score_tokens(source.model, sequences)
    _take_stored_weights(file, source)
    same = difference(score_tokens(source.model, sequences), answer["log_probabilities"])
    check_difference(PROGRAM, same, weight_type.tolerance, where)
    drift = difference(before, answer["log_probabilities"])
    return [
        f"{PROGRAM} against fledge with the weights of the file, log-probabilities in nats: {same.text()}",
        f"{PROGRAM} against the model before export: {drift.text()}; log-likelihood {_change(before, answer)}",
        equal,
        *_silent_stops(answer, source.tokenizer),
    ]


def _change(before: list[list[float]], answer: dict[str, Any]) -> str:
    """The change of the mean log-probability, with its sign."""
    values = [value for row in before for value in row]
    after = [value for row in answer["log_probabilities"] for value in row]
    return f"{(sum(after) - sum(values)) / len(values):+.5f} a token"


@torch.no_grad()
def _take_stored_weights(file: GgufFile, source: ExportSource) -> None:
    """Put the weights of a file into the model."""
    tensors = source.model.file_tensors()
    for name, values in stored_values(file, source.config):
        if name in tensors:  # not the second copy of a tied head
            tensors[name].copy_(values)


def _silent_stops(answer: dict[str, Any], tokenizer: Tokenizer) -> list[str]:
    """A line about the stop tokens at which llama.cpp goes on, if there are some."""
    names = [str(tokenizer.core.id_to_token(token)) for token in sorted(tokenizer.stop_ids)]
    silent = ", ".join(name for name, stops in zip(names, answer["stops"], strict=True) if not stops)
    return [f"{PROGRAM} does not end an answer at {silent} by itself: name it as a stop (as Modelfile does)"] if silent else []


def _request(source: ExportSource, sequences: Sequence[Sequence[int]]) -> dict[str, Any]:
    chats = prompts(source.tokenizer)
    return {
        "sequences": sequences,
        "texts": tokenised_texts(source.tokenizer),
        "conversations": [[{"role": each.role, "content": each.content} for each in messages] for messages in chats],
        "stops": sorted(source.tokenizer.stop_ids),
    }


def _ask(model: Path, request: dict[str, Any]) -> dict[str, Any]:
    """The answer of a process with llama.cpp (`llama_cpp_process`). Raises FledgeError with its last words if it fails."""
    longest = max(len(sequence) for sequence in request["sequences"])
    request |= {"model": str(model), "positions": max(256, longest + 8), "threads": torch.get_num_threads()}
    script = Path(__file__).with_name("llama_cpp_process.py")
    with tempfile.TemporaryDirectory(prefix="fledge-export-") as folder:
        asked, answered = Path(folder) / "request.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps(request), encoding="utf-8")
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [sys.executable, "-P", str(script), str(asked), str(answered)], capture_output=True, env=environment, check=False
        )
        if done.returncode == 0:
            return json.loads(answered.read_text(encoding="utf-8"))
    words = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    raise FledgeError(
        f"{PROGRAM} cannot compute with this file: {words[-1][:300] if words else f'exit code {done.returncode}'}; "
        "nothing was written",
        where=str(model),
    )

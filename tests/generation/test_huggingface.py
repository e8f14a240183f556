"""A model of transformers generates what the native decoder generates, and what the library generates by itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from fledge.generation.huggingface import TransformersInferenceModel
from fledge.generation.inference_model import inference_model
from fledge.generation.native import InferenceModel
from fledge.model.loading import load_model
from fledge.model.protocol import LanguageModel
from tests.support.decoders import random_tokens
from tests.support.transformers_models import both, write_kind

PROMPTS = [random_tokens(length, seed=length).tolist() for length in (9, 4, 17, 1)]


@torch.no_grad()
def greedy(model: LanguageModel, prompts: Sequence[Sequence[int]], new_tokens: Sequence[int], slots: int) -> list[list[int]]:
    """Greedy answers with a fixed number of new tokens each. As the engine does, requests start while others run, and the
    last ones move into the slots of those that finish."""
    form = inference_model(model)
    cache = form.empty_cache(slots, max(map(len, prompts)) + max(new_tokens))
    answers: list[list[int]] = [[] for _ in prompts]
    running, waiting = list[int](), list(range(len(prompts)))
    while running or waiting:
        starting = [waiting.pop(0)] if waiting and len(running) < slots else []  # one at a time: passes are mixed
        lengths = [len(prompts[index]) + len(answers[index]) - 1 for index in running]
        tokens = [answers[index][-1] for index in running]
        logits = form.forward(cache, tokens, lengths, [prompts[index] for index in starting])  # type: ignore[arg-type]
        assert logits.shape == (len(running) + len(starting), model.vocab_size) and logits.dtype == torch.float32
        running += starting
        for index, token in zip(running, logits.argmax(-1).tolist(), strict=True):
            answers[index].append(token)
        done = [slot for slot, index in enumerate(running) if len(answers[index]) == new_tokens[index]]
        for hole in reversed(done):
            last = len(running) - 1
            if hole != last:
                cache.move([last], [hole], len(prompts[running[last]]) + len(answers[running[last]]) - 1)
            running[hole] = running[last]
            running.pop()
    return answers


def test_the_inference_model_depends_on_the_implementation(tmp_path: Path) -> None:
    native, bridge = both(tmp_path)
    assert type(inference_model(native)) is InferenceModel
    assert type(inference_model(bridge)) is TransformersInferenceModel


@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("changes", [{}, {"qk_norm": True, "tie_word_embeddings": False}], ids=["llama", "qwen3"])
def test_greedy_answers_equal_the_native_decoders(tmp_path: Path, changes: dict[str, Any], slots: int) -> None:
    native, bridge = both(tmp_path, **changes)
    new_tokens = [12, 25, 7, 19]
    expected = greedy(native, PROMPTS, new_tokens, slots)
    assert [len(answer) for answer in expected] == new_tokens and len({tuple(answer[:5]) for answer in expected}) > 1
    assert greedy(bridge, PROMPTS, new_tokens, slots) == expected


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3", "gpt2", "mixtral"])
def test_greedy_answers_equal_the_answers_of_transformers(tmp_path: Path, kind: str) -> None:
    theirs = write_kind(tmp_path, kind)
    answers = greedy(load_model(tmp_path).eval(), PROMPTS, [15] * 4, 3)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        settings = {"do_sample": False, "max_new_tokens": 15, "eos_token_id": None, "pad_token_id": 0}
        generated = theirs.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), **settings)
        assert generated[0, len(prompt) :].tolist() == answer


@torch.no_grad()
def test_logits_of_chunks_equal_logits_of_full_passes_in_half_precision(tmp_path: Path) -> None:
    _, model = both(tmp_path)
    model.compute_dtype = torch.bfloat16
    form = TransformersInferenceModel(model)
    cache = form.empty_cache(2)
    first = form.forward(cache, [], [], PROMPTS[:2])
    second = form.forward(cache, [5, 6], [9, 4], [])
    for logits, sequences in ((first, PROMPTS[:2]), (second, [[*PROMPTS[0], 5], [*PROMPTS[1], 6]])):
        expected = torch.stack([model.logits(model(torch.tensor([tokens])))[0, -1] for tokens in sequences])
        assert torch.linalg.vector_norm(logits - expected) < 0.02 * torch.linalg.vector_norm(expected)


def test_a_cache_that_is_cleared_holds_nothing_and_can_be_used_again(tmp_path: Path) -> None:
    _, model = both(tmp_path)
    form = inference_model(model)
    cache = form.empty_cache()
    cache.resize(2, 20)  # type: ignore[union-attr]
    with torch.no_grad():
        logits = form.forward(cache, [], [], PROMPTS[:2])  # type: ignore[arg-type]
        cache.clear()  # type: ignore[union-attr]
        assert cache.slots == 0 and not cache.sequences  # type: ignore[union-attr]
        cache.resize(2, 20)  # type: ignore[union-attr]
        assert torch.equal(form.forward(cache, [], [], PROMPTS[:2]), logits)  # type: ignore[arg-type]

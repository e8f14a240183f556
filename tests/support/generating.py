"""Generation with an engine that is built for one call."""

from collections.abc import Callable, Collection, Iterator, Sequence

from fledge.generation import Completion, Engine, SamplingParams
from fledge.generation.engine import MAX_BATCH_SIZE
from fledge.generation.sampling import GREEDY
from fledge.model.protocol import LanguageModel


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    stop_ids: Collection[int] = (),
    params: SamplingParams | Sequence[SamplingParams] = GREEDY,
    max_batch_size: int = MAX_BATCH_SIZE,
    progress: Callable[[int], None] | None = None,
) -> list[Completion]:
    """`Engine.generate` with a new engine."""
    if not prompts:
        return []
    return Engine(model, stop_ids, max_batch_size=max_batch_size).generate(prompts, params, progress=progress)


def stream(
    model: LanguageModel, prompt: Sequence[int], stop_ids: Collection[int] = (), params: SamplingParams = GREEDY
) -> Iterator[int]:
    """`Engine.stream` with a new engine."""
    return Engine(model, stop_ids, max_batch_size=1).stream(prompt, params)

"""Generation: answers to many prompts at once; where one ends, the next prompt takes its slot at once.

Greedy answers equal those of a whole forward pass for each token, and no answer depends on the others in its batch (up
to the rounding of sums whose order depends on the batch's size). It computes in the model's `compute_dtype`: float32 for
a model that was loaded, what the machine's probe chose for one in training.

Memory: the cache (`cache.cache_bytes`: 2 · layers · slots · key-value heads · head size · places · bytes of a number,
where places is the length of the longest sequence under way, at most half more), the fused weights, and one pass.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from fledge.errors import FledgeError
from fledge.generation.native import InferenceModel
from fledge.generation.sampling import SamplingParams, process_logits, sample_next_token
from fledge.model.decoder import Decoder, eval_mode

__all__ = ["BatchGenerator", "Generated", "SamplingParams", "generate", "process_logits", "stream"]

PASS_TOKENS = 2048  # of new prompts, padding counted, in one pass: bounds its memory. A longer prompt goes alone.


@dataclass(frozen=True)
class Generated:
    """New tokens of one prompt, without the stop token; `ended` says whether there was one."""

    tokens: list[int]
    finish_reason: bool


@dataclass
class SequenceState:
    """An answer on its way: which prompt, how many tokens it may have, those made so far."""

    index: int
    prompt: Sequence[int]
    max_tokens: int
    tokens: list[int] = field(default_factory=list)
    ended: bool = False

    @property
    def stored(self) -> int:
        """Tokens whose keys and values are in the cache: all but the newest, which the next pass reads."""
        return len(self.prompt) + len(self.tokens) - 1

    @property
    def finished(self) -> bool:
        """Whether nothing follows."""
        return self.ended or len(self.tokens) >= self.max_tokens


class BatchGenerator:
    """Prompts waiting, and the answers under way: always in the first slots, one each.

    The longest prompts go first, and neighbours are of similar length: the cache has its size early, and prompts that
    begin together need little padding.
    """

    def __init__(
        self, model: Decoder, prompts: Sequence[Sequence[int]], stop: frozenset[int], sampling: SamplingParams, batch: int
    ) -> None:
        room = model.config.max_position_embeddings
        _check(prompts, room, batch)
        self.stop, self.sampling, self.slots = stop, sampling, min(batch, len(prompts))
        self.answers = [
            SequenceState(index, prompt, min(sampling.max_new_tokens, room - len(prompt)))
            for index, prompt in enumerate(prompts)
        ]
        open_ones = [answer for answer in self.answers if not answer.finished]
        self.waiting = deque(sorted(open_ones, key=lambda answer: -len(answer.prompt)))
        self.going: list[SequenceState] = []
        self.form = InferenceModel(model)
        longest = max((len(answer.prompt) + answer.max_tokens for answer in open_ones), default=0)
        self.cache = self.form.empty_cache(self.slots, longest)
        wide = model.vocab_size if sampling.needs_seen_tokens else 0
        self.seen = torch.zeros(self.slots, wide, dtype=torch.bool, device=self.form.device)

    def __bool__(self) -> bool:
        """Whether anything is left to do."""
        return bool(self.waiting or self.going)

    def step(self) -> list[SequenceState]:
        """One token more for every answer under way, new ones included; returns the answers that it finished."""
        tokens, lengths = [one.tokens[-1] for one in self.going], [one.stored for one in self.going]
        new = self._next_prompts()
        logits = self.form.forward(self.cache, tokens, lengths, [one.prompt for one in new])
        self.going += new
        if self.sampling.needs_seen_tokens:
            self._remember(tokens, new)
        owners = torch.tensor([[one.index, len(one.tokens)] for one in self.going]).to(self.form.device)
        seen = self.seen[: len(self.going)]
        chosen = sample_next_token(logits, self.sampling, seen, owners[:, 0], owners[:, 1]).tolist()
        for one, token in zip(self.going, chosen, strict=True):
            if token in self.stop:
                one.ended = True
            else:
                one.tokens.append(token)
        done = [one for one in self.going if one.finished]
        if done:
            self._compact_slots()
        return done

    def _next_prompts(self) -> list[SequenceState]:
        """Those that begin in this pass: as many as there are free slots, but not more than a pass may hold."""
        new: list[SequenceState] = []
        while self.waiting and len(self.going) + len(new) < self.slots:
            longest = len((new or self.waiting)[0].prompt)
            if new and longest * (len(new) + 1) > PASS_TOKENS:
                break
            new.append(self.waiting.popleft())
        return new

    def _remember(self, tokens: list[int], new: list[SequenceState]) -> None:
        """Mark what the last pass read as seen."""
        going = len(tokens)
        self.seen[going : going + len(new)] = False
        slots, ids = list(range(going)), list(tokens)
        for slot, one in enumerate(new, going):
            slots += [slot] * len(one.prompt)
            ids += one.prompt
        where, which = torch.tensor([slots, ids]).to(self.form.device)
        self.seen[where, which] = True

    def _compact_slots(self) -> None:
        """Finished answers leave; the last ones move into their slots."""
        kept = [slot for slot, one in enumerate(self.going) if not one.finished]
        movers = [slot for slot in kept if slot >= len(kept)]
        holes = [slot for slot in range(len(kept)) if self.going[slot].finished]
        if movers:
            self.cache.move(movers, holes, max(self.going[slot].stored for slot in movers))
            self.seen[holes] = self.seen[movers]
            for mover, hole in zip(movers, holes, strict=True):
                self.going[hole] = self.going[mover]
        del self.going[len(kept) :]


def _check(prompts: Sequence[Sequence[int]], room: int, batch: int) -> None:
    if batch < 1:
        raise FledgeError(f"a batch of {batch} sequences cannot be", where="batch", hint="take 1 or more")
    for number, prompt in enumerate(prompts, 1):
        if not prompt:
            raise FledgeError("it is empty: there is nothing to go on from", where=f"prompt {number}")
        if len(prompt) > room:
            raise FledgeError(
                f"it has {len(prompt):,} tokens, the model has room for {room:,}",
                where=f"prompt {number}",
                hint="shorten it, or train with a larger model.max_position_embeddings",
            )


@torch.no_grad()
def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    stop: frozenset[int],
    sampling: SamplingParams,
    batch: int = 64,
    progress: Callable[[int], None] | None = None,
) -> list[Generated]:
    """Answers to tokenised prompts, in their order; at most `batch` are under way at a time.

    Each ends at a stop token, after `max_new_tokens`, or where the model's positions end; a prompt that fills them all
    gets an empty answer. `progress` is told how many answers were finished, whenever some were. Dropout is off meanwhile.
    Raises FledgeError for a prompt that is empty or longer than the model's positions.
    """
    if not prompts:
        return []
    with eval_mode(model):
        generation = BatchGenerator(model, prompts, stop, sampling, batch)
        full = sum(answer.finished for answer in generation.answers)
        if progress and full:
            progress(full)
        while generation:
            finished = len(generation.step())
            if progress and finished:
                progress(finished)
    return [Generated(answer.tokens, answer.ended) for answer in generation.answers]


@torch.no_grad()
def stream(model: Decoder, prompt: Sequence[int], stop: frozenset[int], sampling: SamplingParams) -> Iterator[int]:
    """The tokens of one answer as they are made; the same as `generate` gives for this prompt alone."""
    with eval_mode(model):
        generation = BatchGenerator(model, [prompt], stop, sampling, 1)
        (answer,) = generation.answers
        while generation:
            generation.step()
            if not answer.ended:
                yield answer.tokens[-1]

"""The generation engine: requests join and leave while it runs, and a free slot is refilled in the next pass.

A greedy answer equals the answer of a full forward pass for each token, and no answer depends on the other requests (up to
the rounding of sums whose order depends on the batch size). The engine computes in the model's `compute_dtype`: float32 for a
loaded model, autotune's choice for a model in training.

Memory: the packed weights; the cache (`kv_cache.cache_bytes`: 2 · layers · slots · key-value heads · head size · capacity ·
bytes of a number, with at most `max_batch_size` slots, and a capacity that follows the longest running sequence, at most the
model's positions); and the activations of one pass. The cache is freed when no request is left.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from fledge.errors import FledgeError
from fledge.generation.inference_model import inference_model
from fledge.generation.json_schema import only_allowed
from fledge.generation.request import Completion, FinishReason, Request, TokenOutput, check_prompt
from fledge.generation.sampling import GREEDY, SamplingParams, sample_batch, token_log_probabilities, uniform_draws
from fledge.generation.seen_tokens import SeenTokens
from fledge.model.device_copy import to_device
from fledge.model.protocol import LanguageModel, eval_mode

PREFILL_TOKENS = 2048  # prompt tokens in one pass, padding included: bounds its memory. A longer prompt goes alone.
MAX_BATCH_SIZE = 64


class Engine:
    """Generates tokens for many requests at once.

    `add` accepts a request at any time, `step` computes one more token of every running request, `cancel` ends a request
    early. `generate` and `stream` are the short forms for a list of prompts and for one prompt; they may be used while
    other requests are running. Requests start in the order in which they were added. Not thread-safe.

    The weights are cast and packed once, in the constructor: after they have changed, build another engine.
    """

    @torch.no_grad()
    def __init__(self, model: LanguageModel, stop_ids: Collection[int] = (), *, max_batch_size: int = MAX_BATCH_SIZE) -> None:
        if max_batch_size < 1:
            raise FledgeError(f"must be 1 or more, not {max_batch_size}", where="max_batch_size")
        self.model, self.stop_ids, self.max_batch_size = model, frozenset(stop_ids), max_batch_size
        self.max_positions = model.max_positions
        self.inference_model = inference_model(model)
        self.cache: Any = self.inference_model.empty_cache()  # of the kind that the inference model has
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # the request at index i has slot i of the cache
        self._seen = SeenTokens(model.vocab_size, self.inference_model.device)
        self._outputs: list[TokenOutput] = []
        self._next_id = 0
        self._longest = 0  # tokens that the longest of the present requests can have

    @property
    def num_unfinished(self) -> int:
        """Requests that are waiting or running."""
        return len(self.waiting) + len(self.running)

    def add(
        self, prompt: Sequence[int], params: SamplingParams = GREEDY, *, sample_index: int = 0, where: str | None = "prompt"
    ) -> int:
        """Queue a request and return its id.

        The answer ends with a stop token, after `max_new_tokens`, or at the last position of the model. Random draws are a
        function of `params.seed`, `sample_index` and the position in the answer: give different indices to draw several
        answers to one prompt with one seed. Raises FledgeError for an empty prompt and PromptTooLongError for a prompt that
        leaves no room for an answer; `where` is the name of the prompt in the message.
        """
        return self._add(prompt, params, sample_index, where, self._outputs).request_id

    def _add(
        self, prompt: Sequence[int], params: SamplingParams, sample_index: int, where: str | None, outputs: list[TokenOutput]
    ) -> Request:
        check_prompt(prompt, self.max_positions, where)
        request = Request(
            request_id=self._next_id,
            prompt=list(prompt),
            params=params,
            sample_index=sample_index,
            max_tokens=min(params.max_new_tokens, self.max_positions - len(prompt)),
            outputs=outputs,
            matcher=None if params.json_schema is None else params.json_schema.matcher(),
        )
        self._next_id += 1
        self._longest = max(self._longest, len(prompt) + request.max_tokens)
        self.waiting.append(request)
        return request

    def step(self) -> list[TokenOutput]:
        """Compute one more token of every running request, including the requests that start in this pass.

        Returns all outputs since the last call, for requests that were queued by `add`. Computes nothing if no request is left.
        """
        self._forward_pass()
        outputs = self._outputs.copy()
        self._outputs.clear()
        return outputs

    def cancel(self, request_id: int) -> bool:
        """End a request; its slot is free for the next pass. The next `step` returns its last output, with the finish reason
        "cancelled". Returns False if there is no unfinished request with this id."""
        for request in (*self.running, *self.waiting):
            if request.request_id == request_id:
                self._finish(request, TokenOutput(request_id, None, None, "cancelled"))
                if request in self.running:
                    self._compact_slots()
                else:
                    self.waiting.remove(request)
                self._free_if_idle()
                return True
        return False

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] = GREEDY,
        *,
        sample_indices: Sequence[int] | None = None,
        where: Sequence[str] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """The completions of prompts, in the order of the prompts; `params` are common to all prompts or one for each.

        `sample_indices`: of each prompt (see `add`); None: its index in the list. `progress` is called with the number of newly
        finished completions whenever there are some. Raises FledgeError, before computing anything, for a prompt that is empty
        or too long; `where` are the names of the prompts in the message.
        """
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts, but {len(each)} sampling parameters")
        for number, prompt in enumerate(prompts):
            check_prompt(prompt, self.max_positions, where[number] if where else f"prompt {number + 1}")
        # The longest go first: the cache has its size early, and prompts that start together need little padding.
        order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
        indices = range(len(prompts)) if sample_indices is None else sample_indices
        requests = {number: self._add(prompts[number], each[number], indices[number], None, []) for number in order}
        unfinished = {request.request_id for request in requests.values()}
        try:
            while unfinished:
                finished = unfinished & {request.request_id for request in self._forward_pass()}
                unfinished -= finished
                if progress and finished:
                    progress(len(finished))
        finally:
            for request_id in unfinished:
                self.cancel(request_id)
        return [Completion.from_outputs(requests[number].outputs) for number in range(len(prompts))]

    def stream(self, prompt: Sequence[int], params: SamplingParams = GREEDY, *, where: str | None = "prompt") -> Iterator[int]:
        """Yield the tokens of one answer, each as soon as it is chosen; they equal the answer of `generate` to this prompt
        alone.

        The request is cancelled if the iterator is closed early.
        """
        outputs: list[TokenOutput] = []
        request = self._add(prompt, params, 0, where, outputs)
        try:
            while outputs or request.finish_reason is None:
                if not outputs:
                    self._forward_pass()
                for output in outputs:
                    if output.token is not None and output.finish_reason != "stop":
                        yield output.token
                outputs.clear()
        finally:
            if request.finish_reason is None:
                self.cancel(request.request_id)

    @torch.no_grad()
    def _forward_pass(self) -> list[Request]:
        """One pass through the model; returns the requests that it finished."""
        starting = self._next_prompts()
        if not self.running and not starting:
            return []
        self._grow_cache()
        decoded = [request.tokens[-1] for request in self.running]
        prompts = [request.prompt for request in starting]
        lengths = [request.num_cached for request in self.running]
        with eval_mode(self.model) if self.model.training else nullcontext():
            logits = self.inference_model.forward(self.cache, decoded, lengths, prompts)
        for _ in starting:  # only now: a pass that fails, for want of memory, leaves them in the queue
            self.waiting.popleft()
        self.running += starting
        needs_seen = any(request.params.needs_seen_tokens for request in self.running)
        seen = self._seen.update(decoded, [self._of_decoder(prompt) for prompt in prompts]) if needs_seen else None
        finished = self._append_tokens(logits, seen)
        if finished:
            self._compact_slots()
            self._free_if_idle()
        return finished

    def _of_decoder(self, prompt: Sequence[int]) -> Sequence[int]:
        """The tokens of a prompt that count as present: of an encoder–decoder, those from the decoder's start token on."""
        start = self.model.decoder_start
        return prompt if start is None or start not in prompt else prompt[prompt.index(start) :]

    def _next_prompts(self) -> list[Request]:
        """The requests that start in this pass: at most one per free slot, and at most PREFILL_TOKENS prompt tokens."""
        starting: list[Request] = []
        longest = 0
        for request in islice(self.waiting, self.max_batch_size - len(self.running)):
            longest = max(longest, len(request.prompt))
            if starting and longest * (len(starting) + 1) > PREFILL_TOKENS:
                break
            starting.append(request)
        return starting

    def _grow_cache(self) -> None:
        """Give every waiting or running request a slot, up to `max_batch_size`. The number of slots at least doubles when it
        grows, so that a cache that grows with its requests is copied only a few times."""
        slots = min(self.max_batch_size, self.num_unfinished)
        if slots > self.cache.slots:
            slots = min(self.max_batch_size, max(slots, 2 * self.cache.slots))
        self.cache.resize(slots, self._longest)

    def _append_tokens(self, logits: Tensor, seen: Tensor | None) -> list[Request]:
        """Choose the next token of each running request from its logits [n, V]; returns the requests that are now finished."""
        matchers = {slot: request.matcher for slot, request in enumerate(self.running) if request.matcher is not None}
        allowed = only_allowed(logits, matchers) if matchers else logits
        chosen = sample_batch(allowed, [request.params for request in self.running], seen, self._draws())
        tokens, logprobs = self._read(logits, chosen)
        finished = []
        for slot, (request, token) in enumerate(zip(self.running, tokens, strict=True)):
            reason: FinishReason | None = None
            if request.matcher is not None:
                request.matcher.accept(token)
            if token in self.stop_ids:
                reason = "stop"
            else:
                request.tokens.append(token)
                if len(request.tokens) == request.max_tokens:
                    reason = "length"
            output = TokenOutput(request.request_id, token, logprobs.get(slot), reason)
            if reason is None:
                request.outputs.append(output)
            else:
                self._finish(request, output)
                finished.append(request)
        return finished

    def _draws(self) -> Tensor | None:
        """A random number for each running request, or None if all of them are greedy."""
        if all(request.params.temperature <= 0 for request in self.running):
            return None
        return uniform_draws(
            [request.params.seed for request in self.running],
            [request.sample_index for request in self.running],
            [len(request.tokens) for request in self.running],
            self.inference_model.device,
        )

    def _read(self, logits: Tensor, chosen: Tensor) -> tuple[list[int], dict[int, float]]:
        """The chosen tokens [n] as numbers; and their log-probabilities, by slot, for the requests with `params.logprobs`. Both
        are read together, because reading waits for the device; float64 holds both exactly."""
        slots = [slot for slot, request in enumerate(self.running) if request.params.logprobs]
        if not slots:
            return chosen.tolist(), {}
        tokens = chosen
        if len(slots) < len(self.running):
            index = to_device(slots, logits.device)
            logits, tokens = logits[index], tokens[index]
        together = torch.cat((chosen.double(), token_log_probabilities(logits, tokens).double())).tolist()
        count = len(self.running)
        return [int(token) for token in together[:count]], dict(zip(slots, together[count:], strict=True))

    def _finish(self, request: Request, output: TokenOutput) -> None:
        request.finish_reason = output.finish_reason
        request.outputs.append(output)

    def _compact_slots(self) -> None:
        """Remove finished requests and move the last requests into their slots."""
        kept = [slot for slot, request in enumerate(self.running) if request.finish_reason is None]
        movers = [slot for slot in kept if slot >= len(kept)]
        holes = [slot for slot in range(len(kept)) if self.running[slot].finish_reason is not None]
        if movers:
            self.cache.move(movers, holes, max(self.running[slot].num_cached for slot in movers))
            self._seen.move(movers, holes)
            for mover, hole in zip(movers, holes, strict=True):
                self.running[hole] = self.running[mover]
        del self.running[len(kept) :]

    def _free_if_idle(self) -> None:
        """Free the memory of the cache and of the seen tokens if no request is left."""
        if not self.num_unfinished:
            self.cache.clear()
            self._seen.clear()
            self._longest = 0

"""Memory by component for every moment of a stage, computed from the sizes of the model, the batch and the recipe.

What a stage holds changes during an update: activations grow in the forward pass and shrink in the backward pass, gradients
grow, and a logged update keeps the weights from before it. The most is needed at one of these moments, which is why components
of different moments must not be added. On a CPU a checkpoint is a copy in the same memory, and is written while training goes
on.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from fledge.model.attention import MOST_BLOCKS, QUERY_BLOCK
from fledge.model.cost import ModelCost
from fledge.model.linear_cross_entropy import CHUNK, chunk_rows, float32_logits, tile_numbers
from fledge.model.product_shapes import padded_lengths
from fledge.model.segments import segment_room
from fledge.plan.memory_components import Memory
from fledge.recipe.schema import OptimizerConfig, RuntimeConfig, Stage
from fledge.run.code_cache import MOST_KERNELS

MIB = 2**20
BASELINE_BYTES = 500 * MIB  # on a GPU: context, libraries and what the allocator rounds up
PROGRAM_BYTES = 350 * MIB  # on a CPU: interpreter, libraries and their first products; measured by benchmarks/plan_memory.py
QUANTIZER_BYTES = 20 * MIB  # the library of 4-bit weights
COMPILER_BYTES = 130 * MIB
KERNEL_BYTES = 0.6 * MIB  # of code for one shape of a bfloat16 product on a CPU: 0.4 to 1.2 were measured with torch 2.13
FIXED_SHAPES = 60  # shapes of a dense model on rows of one length
PRODUCTS_OF_EXPERT, PRODUCTS_OF_HEAD, PRODUCTS_OF_ATTENTION = 6, 3, 7  # forward and backward, where their rows differ
SHAPES_OF_MUON = 30  # some products of each shape of a block's matrices
QUERIES = 128  # of a block of `segments`
FUSED = ("sdpa", "segments")  # backends that hold the scores of a few queries only
MASKLESS = ("segments",)  # backends without a number for each pair of positions of a row, on a CPU
# A CPU's allocator leaves holes between tensors that stay and tensors that come and go: a share of these, and, where what a
# checkpointed block saves lies between what it frees, of a recomputed block (less if not all blocks are recomputed). More holes
# where outputs of a layer and of its adapter come and go beside their sum, and in a forward pass that keeps nothing. It also
# keeps a share of what was freed since the moment with the most of such tensors. Chosen from benchmarks/plan_memory.py.
ALLOCATOR_SHARE, ADAPTED_SHARE, FORWARD_SHARE, RECOMPUTED_SHARE, KEPT_SHARE = 0.5, 0.9, 1.2, 1.5, 0.4


@dataclass(frozen=True, kw_only=True)
class MemoryInputs:
    """The inputs of the memory estimate of a stage, except the number of rows. Bytes are of this process's device."""

    cost: ModelCost
    row_length: int
    optimizer: OptimizerConfig
    device: str
    documents_per_row: float = 1.0  # pieces of documents in a packed row, on average
    document_lengths: int = 1  # different lengths of these pieces
    partial: bool = False  # not every position is a target, so that their number differs from batch to batch
    updates: int | None = None  # None: many
    accumulates: bool = True  # an update has several micro-batches, so that gradients of earlier ones are held
    answers_per_row: int = 1  # drawn for each row: several micro-batches of answers
    averaged: bool = False  # an EMA of the trained weights
    adapter_copies: int = 0  # of an adapter's weights: where the reference is the base with the adapter of the start
    second_gradient: bool = False  # evaluations compare two gradients
    reference: float = 0.0  # bytes of the reference, where that is a second model on this device
    can_adapt: bool = True  # the stage starts from weights, beside which an adapter can be trained
    can_precompute: bool = False  # the reference's log-probabilities can be computed before the first step
    sequences_per_row: int = 1  # of `max_seq_len` tokens: 2 in a row of pairs
    precomputes_reference: bool = False  # the reference's log-probabilities are computed before the first step
    reward_models: float = 0.0  # bytes of the models that judge answers
    adapter: int | None = None  # parameters of the adapter, if only one is trained
    rounded: bool = False  # the frozen matrices are kept in the dtype of the products (`frozen_weights`)
    quantized: float | None = None  # bytes of a number of the frozen matrices, if they are quantized
    ranks: int = 1
    sharded: bool = False  # among the ranks: FSDP; else each rank has all (DDP)
    stage: Stage | None = None  # that is estimated: its keys that a change of another one must go with


@dataclass(frozen=True)
class _Step:
    """Numbers that several moments need, for `rows` rows in a micro-batch."""

    inputs: MemoryInputs
    runtime: RuntimeConfig
    rows: int

    @property
    def tokens(self) -> int:
        return self.rows * self.inputs.row_length

    @property
    def size(self) -> int:
        """Bytes of a number in products. An undecided precision counts as the larger case."""
        precision = self.runtime.precision
        half = precision in ("bf16", "fp16") or (precision == "auto" and self.inputs.device == "cuda")
        return 2 if half else 4

    @property
    def every(self) -> int:
        return self.runtime.activation_checkpoint_every

    @property
    def is_compiled(self) -> bool:
        """Undecided compilation counts as the larger case."""
        return self.runtime.compile is True

    @property
    def trained(self) -> int:
        """Parameters with a gradient."""
        adapter = self.inputs.adapter
        return self.inputs.cost.parameters().total if adapter is None else adapter

    @property
    def accumulates(self) -> bool:
        """Whether gradients of earlier micro-batches are held."""
        return self.inputs.accumulates or self.inputs.answers_per_row > 1

    @property
    def share(self) -> float:
        """What one rank holds of the states."""
        return 1 / self.inputs.ranks if self.inputs.sharded else 1.0

    @property
    def gathered(self) -> float:
        """Bytes of the weights that FSDP gathers: embedding and head, the block at work and the next one."""
        if not self.inputs.sharded:
            return 0.0
        cost = self.inputs.cost
        blocks = (cost.parameters().total - cost.table_parameters) / cost.config.num_hidden_layers
        return 4.0 * (cost.table_parameters + 2 * blocks)

    @property
    def stored(self) -> float:
        """Bytes of a number of the frozen matrices."""
        if self.inputs.quantized is not None:
            return self.inputs.quantized
        return float(self.size) if self.inputs.rounded else 4.0

    def thinned(self) -> float:
        """Bytes that frozen matrices save in the form in which they are stored."""
        if self.stored == 4:
            return 0.0
        cost, how = self.inputs.cost, (self.size, self.every)
        return cost.frozen_savings(self.stored, *how) - cost.saved_copies(*how)

    def states(self) -> Memory:
        """What is held from step to step."""
        inputs, cost = self.inputs, self.inputs.cost
        total = cost.parameters().total
        weights = 4 * (total + (inputs.adapter or 0)) - self.thinned()
        averages = 4.0 * self.trained if inputs.averaged else 0.0
        return Memory(
            weights=weights * self.share + self.gathered,
            optimizer_state=cost.optimizer_bytes(inputs.optimizer.name, inputs.adapter) * self.share,
            copies=averages * self.share + 4.0 * inputs.adapter_copies * self.trained,
            reference=inputs.reference,
            reward_models=inputs.reward_models,
            reserve=self.reserve(),
        )

    def reserve(self) -> float:
        """The program, and for what is compiled or quantized the libraries that do it."""
        if self.inputs.device != "cpu":
            return BASELINE_BYTES
        extras = (self.inputs.quantized is not None, QUANTIZER_BYTES), (self.is_compiled, COMPILER_BYTES)
        return PROGRAM_BYTES + sum(size for used, size in extras if used) + self.kernels()

    def kernels(self) -> float:
        """Code that a CPU's library makes for each shape of a product in low precision, and keeps. Shapes of one model are few,
        but the rows of an expert, of the last chunk of the head and of a document's attention differ from batch to batch. Muon
        multiplies in low precision whatever the model does."""
        inputs = self.inputs
        shapes = SHAPES_OF_MUON if inputs.optimizer.name == "muon" and inputs.adapter is None else 0
        if self.size == 4:
            return KERNEL_BYTES * shapes
        updates = math.inf if inputs.updates is None else inputs.updates
        shapes += FIXED_SHAPES + PRODUCTS_OF_EXPERT * self.loads(updates)
        if inputs.partial:
            shapes += PRODUCTS_OF_HEAD * min(updates, padded_lengths(CHUNK))
        if self.runtime.attention in ("auto", "segments"):
            blocks = math.ceil(inputs.row_length / max(1.0, inputs.documents_per_row) / QUERIES)
            shapes += PRODUCTS_OF_ATTENTION * min(inputs.document_lengths, padded_lengths(QUERIES)) * blocks
        return KERNEL_BYTES * min(shapes, MOST_KERNELS)

    def loads(self, updates: float) -> float:
        """Different numbers of rows of an expert that are to be expected: each is drawn from 0 to twice the mean, and padded to
        a length that repeats."""
        moe, layers = self.inputs.cost.config.moe, self.inputs.cost.config.num_hidden_layers
        if moe is None:
            return 0.0
        values = padded_lengths(math.ceil(2 * self.tokens * moe.num_experts_per_tok / moe.num_experts))
        return values * -math.expm1(-layers * moe.num_experts * updates / values)

    def held_gradients(self) -> float:
        """Gradients of the micro-batches before."""
        if not self.accumulates:
            return 0.0
        return 4.0 * self.trained * self.share + self.gathered

    def head_gradient(self) -> float:
        """The gradient of the head's matrix, which is made with the loss."""
        return 0.0 if self.inputs.adapter is not None else 4.0 * self.inputs.cost.head_parameters

    def logits(self) -> float:
        """The chunk of logits; in low precision also the part of it in float32, the head's matrix in that
        precision, and a tile of the product for its gradient."""
        cost = self.inputs.cost
        if not cost.has_lm_head:
            return 0.0
        dtype = torch.float32 if self.size == 4 else torch.bfloat16
        device = torch.device(self.inputs.device)
        chunk = min(self.tokens, chunk_rows(cost.vocab_size, dtype, device))
        logits = chunk * cost.vocab_size
        if self.size == 4:
            return 4.0 * logits
        widened = 4 * min(logits, float32_logits(device))
        tile = 0 if self.inputs.adapter is not None else (4 + self.size) * min(tile_numbers(device), cost.head_parameters)
        return float(self.size * (logits + cost.head_parameters) + widened + tile)

    def saved(self) -> float:
        """Bytes that the forward pass saves for the backward pass, masks included."""
        cost = self.inputs.cost
        kept = cost.kept_bytes(self.tokens, self.size, self.is_compiled, self.every)
        if self.stored < 4:
            kept -= cost.saved_copies(self.size, self.every)
        if self.inputs.adapter is not None and not self.is_compiled:
            kept -= self.tokens * cost.frozen_norm_bytes(self.every)
        return kept + self.attention()

    @property
    def scores(self) -> int:
        """Scores that a token has at a time where attention is written as products over blocks of queries."""
        if self.inputs.device != "cpu" or self.runtime.attention in FUSED:
            return 0
        length = self.inputs.row_length
        block = max(QUERY_BLOCK, math.ceil(length / MOST_BLOCKS / QUERY_BLOCK) * QUERY_BLOCK)
        return self.inputs.cost.config.num_attention_heads * min(block, length)

    def attention(self) -> float:
        """What attention holds beyond `block_bytes`, which counts `blocked` without its mask: on CUDA the most of all backends
        that may be chosen, on a CPU the mask."""
        cost, tokens, length, chosen = self.inputs.cost, self.tokens, self.inputs.row_length, self.runtime.attention
        if self.inputs.device != "cuda":
            return 0.0 if chosen in MASKLESS else float(self.size * tokens * length)
        masked = cost.masked_attention_bytes(tokens, length, self.size, self.every)
        varlen = cost.varlen_bytes(tokens, segment_room(math.ceil(self.rows * self.inputs.documents_per_row)))
        by_backend = {"sdpa": masked, "varlen": varlen, "auto": max(masked, varlen)}
        return by_backend.get(chosen, 0.0)

    def with_allocator(self, memory: Memory, most: float = 0.0, share: float | None = None) -> Memory:
        """With what a CPU's allocator holds beyond the tensors that come and go in a step: `share` of them, None: that of a
        training step. `most`: bytes of these at an earlier moment."""
        if self.inputs.device != "cpu":
            return memory
        cost, how = self.inputs.cost, (self.tokens, self.size, self.is_compiled, self.every)
        if share is None:
            share = ALLOCATOR_SHARE if self.inputs.adapter is None else ADAPTED_SHARE
        holes = share * memory.fleeting + KEPT_SHARE * max(0.0, most - memory.fleeting)
        if memory.activations and self.every:
            recomputed = cost.activation_bytes(*how) - cost.kept_bytes(*how)
            holes += RECOMPUTED_SHARE / self.every * recomputed
        return replace(memory, reserve=memory.reserve + holes)


def _forward(step: _Step) -> Memory:
    """The end of the forward pass: all activations, and the logits of a chunk with the gradients that they give."""
    head = step.head_gradient() + step.logits()
    return replace(step.states(), gradients=step.held_gradients(), activations=step.saved(), head=head)


def _backward(step: _Step) -> Memory:
    """The backward pass of the last block, computed again if it is checkpointed, with the gradients inside it."""
    cost, inner = step.inputs.cost, step.inputs.cost.backward_bytes(step.tokens, step.size, step.scores)
    again = cost.activation_bytes(step.tokens, step.size, step.is_compiled, step.every)
    again -= cost.kept_bytes(step.tokens, step.size, step.is_compiled, step.every)
    return replace(
        step.states(),
        gradients=step.held_gradients(),
        activations=step.saved() + again + inner,
        head=step.head_gradient(),
    )


def _gradients(step: _Step) -> Memory:
    """The end of the backward pass: all gradients; a tied matrix has two until they are added, and ranks exchange copies."""
    inputs, cost = step.inputs, step.inputs.cost
    tables = 0.0 if inputs.adapter is not None else 4.0 * cost.head_parameters
    waiting = tables * (cost.config.tie_word_embeddings + step.accumulates)
    copies = 4.0 * step.trained if inputs.ranks > 1 and not inputs.sharded else 0.0
    gradients = 4.0 * step.trained * step.share + step.gathered + copies
    return replace(step.states(), gradients=gradients, head=waiting)


def _update(step: _Step) -> Memory:
    """The optimizer at work in an update whose details are logged: the weights from before it are held."""
    states, of_rank = step.states(), step.trained * step.share
    work = step.inputs.cost.optimizer_work_bytes(step.inputs.optimizer.name) if step.inputs.adapter is None else 0.0
    return replace(
        states,
        gradients=4.0 * of_rank,
        optimizer_state=states.optimizer_state + work,
        copies=states.copies + 4.0 * of_rank,
    )


def _evaluation(step: _Step) -> Memory:
    """An evaluation: a forward pass that saves nothing, with averaged weights in place of the others if there are any."""
    states = step.states()
    own = 4.0 * step.trained * step.share if step.inputs.averaged else 0.0
    if step.inputs.second_gradient:  # takes gradients like a step
        return replace(_backward(step), gradients=8.0 * step.trained, copies=states.copies + own)
    working = step.inputs.cost.forward_bytes(step.tokens, step.size, step.scores) + step.attention()
    return replace(states, activations=working, head=step.logits(), copies=states.copies + own)


def _reference(step: _Step) -> Memory:
    """The log-probabilities of the reference, computed by the model before it has gradients and an optimizer."""
    return replace(_evaluation(step), optimizer_state=0.0, copies=0.0)


def _saving(step: _Step) -> Memory:
    """A checkpoint that is written while training goes on: on a CPU, a copy of weights, optimizer state and averages."""
    training = memory_of_step(step.inputs, step.runtime, step.rows)
    if step.inputs.device != "cpu":
        return training
    states = step.states()
    weights = 4.0 * step.trained * (2 if step.inputs.averaged else 1)  # the main process writes whole weights
    averages = 4.0 * step.trained * step.share if step.inputs.averaged else 0.0
    return replace(training, copies=training.copies + weights + averages + states.optimizer_state)


def _start(step: _Step) -> Memory:
    """Before FSDP divides the model, each rank has it whole on its device; so it has for prompt tests and the next stage."""
    return Memory(weights=4.0 * step.inputs.cost.parameters().total, reserve=step.reserve())


Moment = Callable[[_Step], Memory]
OF_STEP: dict[str, Moment] = {"forward": _forward, "backward": _backward, "gradients": _gradients, "update": _update}
OF_STAGE: dict[str, Moment] = {"evaluation": _evaluation, "saving": _saving, "reference": _reference, "start": _start}


def moments_of_step(inputs: MemoryInputs, runtime: RuntimeConfig, rows: int) -> dict[str, Memory]:
    """The memory at each moment of an update with `rows` rows per micro-batch: the end of the forward pass, the first block of
    the backward pass, the end of the backward pass, the optimizer. Undecided precision and compilation count as the larger
    case."""
    step = _Step(inputs, runtime, rows)
    moments = {name: moment(step) for name, moment in OF_STEP.items()}
    most = max(memory.fleeting for memory in moments.values())
    return {name: step.with_allocator(memory, most) for name, memory in moments.items()}


def memory_of_step(inputs: MemoryInputs, runtime: RuntimeConfig, rows: int) -> Memory:
    """The memory of a training step at the moment that needs the most."""
    return max(moments_of_step(inputs, runtime, rows).values(), key=lambda memory: memory.total)


def memory_of_stage(inputs: MemoryInputs, runtime: RuntimeConfig, rows: int) -> dict[str, Memory]:
    """The memory of a stage in a training step (its worst moment), in an evaluation, while a checkpoint is written, while the
    reference's log-probabilities are computed (where the stage does so before it begins), and before the model is divided
    among ranks (where it is)."""
    step = _Step(inputs, runtime, rows)
    occurs = {"reference": inputs.precomputes_reference, "start": inputs.sharded}
    others = {name: moment(step) for name, moment in OF_STAGE.items() if occurs.get(name, True)}
    shares = {"evaluation": None if inputs.second_gradient else FORWARD_SHARE, "reference": FORWARD_SHARE}
    worst = {
        name: memory if name == "saving" else step.with_allocator(memory, share=shares.get(name))
        for name, memory in others.items()
    }
    return {"training step": memory_of_step(inputs, runtime, rows), **worst}


def estimate(inputs: MemoryInputs, runtime: RuntimeConfig, rows: int) -> float:
    """Bytes of a stage with `rows` rows per micro-batch, at the moment that needs the most."""
    return max(memory.total for memory in memory_of_stage(inputs, runtime, rows).values())

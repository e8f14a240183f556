"""The cost of a decoder, computed from its sizes: for planning before anything is built, and for MFU."""

from collections import Counter
from dataclasses import dataclass, replace

from fledge.recipe.schema import AdapterConfig, ModelConfig
from fledge.recipe.sections.adapter import ALL_LINEAR, PREFIX


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters. `total`: all. `active`: the parameters that one token passes through. `matmul`: the active
    parameters in matrix products (with the head, without the lookup of the embedding). `sides`: rows and columns of all
    matrices that an adapter can be on, added: the parameters of a rank (of experts, those of one dense block)."""

    total: int
    active: int
    matmul: int
    sides: int


def embedding_parameters(config: ModelConfig, vocab_size: int, has_lm_head: bool = True) -> int:
    """Number of parameters of the embedding, and of the head if it is not tied to the embedding. A reward model
    (`has_lm_head` false) has a head of one row."""
    if not has_lm_head:
        return (vocab_size + 1) * config.hidden_size
    return vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)


FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")  # each expert has its own


def experts_of_token(config: ModelConfig) -> int:
    """Number of feed-forward parts that a token passes in a block: 1 in a dense one, else routed and shared experts."""
    return 1 if config.moe is None else config.moe.num_experts_per_tok + config.moe.num_shared_experts


def linear_layers(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the linear layers of a dense block of a native decoder, by name."""
    width, queries, keys = config.hidden_size, config.attention_size, config.head_size * config.num_key_value_heads
    return {
        "q_proj": (width, queries),
        "k_proj": (width, keys),
        "v_proj": (width, keys),
        "o_proj": (queries, width),
        "gate_proj": (width, config.intermediate_size),
        "up_proj": (width, config.intermediate_size),
        "down_proj": (config.intermediate_size, width),
    }


def parameters(config: ModelConfig, vocab_size: int, has_lm_head: bool = True) -> Parameters:
    """Parameters of a native decoder of these sizes, dense or a mixture of experts. `has_lm_head`: false for a reward model."""
    width, head = config.hidden_size, config.head_size
    keys = head * config.num_key_value_heads
    attention = 2 * width * (config.attention_size + keys)
    biases = {"none": 0, "qkv": config.attention_size + 2 * keys, "qkvo": config.attention_size + 2 * keys + width}
    vectors = 2 * width + (2 * head if config.qk_norm else 0) + biases[config.attention_bias]
    expert = 3 * width * config.intermediate_size
    if config.moe is None:
        all_experts = active_experts = expert
    else:
        shared_gate = 1 if config.moe.num_shared_experts else 0  # the sigmoid that scales the shared experts
        router = width * (config.moe.num_experts + shared_gate)
        all_experts = router + expert * (config.moe.num_experts + config.moe.num_shared_experts)
        active_experts = router + expert * experts_of_token(config)
    head_rows, tables = vocab_size if has_lm_head else 1, embedding_parameters(config, vocab_size, has_lm_head)
    layers = config.num_hidden_layers
    rest = tables + width + layers * (attention + vectors)
    return Parameters(
        total=rest + layers * all_experts,
        active=rest + layers * active_experts,
        matmul=head_rows * width + layers * (attention + active_experts),
        sides=layers * sum(map(sum, linear_layers(config).values())),
    )


STATE_BYTES = {"adamw": 8.0, "muon": 4.0, "adamw8bit": 2.03, "adafactor": 0.1}  # of optimizer state for a parameter it holds
MUON_STACK = 2**25  # numbers of matrices that Muon works on at a time, or those of one stack of experts
VISIBILITY_BYTES = 128  # for each key: which queries of a block see it


@dataclass(frozen=True)
class ModelCost:
    """Parameters, floating-point operations and memory of a decoder of these sizes.

    A multiply-add is two operations. Only matrix products are counted: all other operations are less than a hundredth.
    `counts`: the parameters of a model that is not a native decoder; its operations and memory are estimated as for a native
    decoder of equal sizes. `has_lm_head`: false for a reward model, which has one row in place of one for each token.
    """

    config: ModelConfig
    vocab_size: int
    counts: Parameters | None = None
    has_lm_head: bool = True

    @property
    def head_parameters(self) -> int:
        """Parameters of the head, tied or not."""
        return self.config.hidden_size * (self.vocab_size if self.has_lm_head else 1)

    @property
    def table_parameters(self) -> int:
        """Parameters of embedding and head; tied ones count once."""
        return embedding_parameters(self.config, self.vocab_size, self.has_lm_head)

    def parameters(self) -> Parameters:
        """Numbers of parameters."""
        return parameters(self.config, self.vocab_size, self.has_lm_head) if self.counts is None else self.counts

    def with_vocabulary(self, vocab_size: int) -> "ModelCost":
        """The cost of this model with rows for another number of tokens in embedding and head."""
        other = replace(self, vocab_size=vocab_size)
        rows = other.table_parameters - self.table_parameters
        head = other.head_parameters - self.head_parameters
        counts = self.counts and replace(
            self.counts,
            total=self.counts.total + rows, active=self.counts.active + rows, matmul=self.counts.matmul + head,
        )  # fmt: skip
        return replace(other, counts=counts)

    def of_reward_model(self) -> "ModelCost":
        """The cost of the reward model that a native decoder becomes."""
        return replace(self, has_lm_head=False)

    def scaling_parameters(self) -> int:
        """The N of scaling laws: active parameters without embedding and head (Kaplan et al. 2020, §2.1)."""
        return self.parameters().active - self.table_parameters

    # -- operations -------------------------------------------------------------------------------------------------

    def head_flops(self) -> float:
        """Operations of one token's logits: 2·width·vocabulary; of a reward, 2·width."""
        return 2.0 * self.head_parameters

    def body_flops(self, context: float) -> float:
        """Operations of one token in all blocks: 2 for each `matmul` parameter, and in attention 4·(width of all query heads)
        for each position that it attends to, on average half the context (Chowdhery et al. 2022, appendix B)."""
        config = self.config
        matrices = self.parameters().matmul - self.head_parameters
        return 2.0 * matrices + 4.0 * config.num_hidden_layers * config.attention_size * context / 2

    def forward_flops(self, context: int) -> float:
        """Operations of one token's forward pass."""
        return self.body_flops(context) + self.head_flops()

    def training_body_flops(self, context: float, recomputed: float = 0.0) -> float:
        """Operations of one token in all blocks in training, 3 to 4 times the forward pass: forward (1), gradients of inputs
        and of weights (2), and the share `recomputed` of the blocks once more for activation checkpointing."""
        return (3 + recomputed) * self.body_flops(context)

    def training_head_flops(self) -> float:
        """Operations of the head for one supervised token: logits, and gradients of hidden states and of the matrix."""
        return 3 * self.head_flops()

    def training_flops(self, context: int, recomputed: float = 0.0) -> float:
        """Operations of one supervised token: 6·N for the N `matmul` parameters, and attention."""
        return self.training_body_flops(context, recomputed) + self.training_head_flops()

    # -- memory -----------------------------------------------------------------------------------------------------

    def kv_bytes(self, tokens: int, size: int = 2) -> int:
        """Bytes of the keys and values of `tokens` tokens, at `size` bytes a number."""
        config = self.config
        return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_size * size * tokens

    def adapter_parameters(self, rank: int) -> int:
        """Parameters of low-rank adapters of this rank on all linear layers of the blocks, counted as those of dense blocks:
        the most that an adapter has."""
        return rank * self.parameters().sides

    def trained_by(self, adapter: AdapterConfig) -> int | None:
        """Parameters that a stage with this adapter trains. None where the sizes do not tell: for another model than a dense
        native decoder, a regular expression, names of single layers, other ranks, and modules that are trained whole."""
        if adapter.peft_type == PREFIX:
            return self.kv_bytes(adapter.num_virtual_tokens, size=1)
        layers = linear_layers(self.config)
        names = list(layers) if adapter.target_modules == ALL_LINEAR else adapter.target_modules
        if self.counts is not None or self.config.moe is not None or adapter.rank_pattern or adapter.modules_to_save:
            return None
        if isinstance(names, str) or not set(names) <= set(layers):
            return None
        score = 0 if self.has_lm_head else self.head_parameters
        of_layer = sum(adapter.r * sum(layers[name]) + adapter.use_dora * layers[name][1] for name in set(names))
        return self.config.num_hidden_layers * of_layer + score

    def optimizer_bytes(self, optimizer: str, adapter: int | None = None) -> float:
        """Bytes of the optimizer's state. Only the matrices of the blocks have Muon's momentum or 8-bit moments; embedding and
        head have AdamW's two moments in float32. Adafactor has one number for each row and one for each column of a matrix. An
        adapter of that many parameters is trained by AdamW."""
        if adapter is not None:
            return STATE_BYTES["adamw"] * adapter
        total, tables = self.parameters().total, self.table_parameters
        of_tables = STATE_BYTES["adafactor" if optimizer == "adafactor" else "adamw"]
        return STATE_BYTES[optimizer] * (total - tables) + of_tables * tables

    def state_bytes(self, optimizer: str, adapter: int | None = None) -> float:
        """Bytes held from step to step: float32 weights, their gradients, and the optimizer's state (`optimizer_bytes`). With
        an adapter of that many parameters the weights have neither."""
        total = self.parameters().total
        weights = 8 * total if adapter is None else 4 * total + 8 * adapter
        return weights + self.optimizer_bytes(optimizer, adapter)

    def optimizer_work_bytes(self, optimizer: str) -> float:
        """Bytes that an optimizer holds only while it works: Muon the blended gradients in float32, and four stacks of matrices
        of one shape in 2 bytes a number, of at most MUON_STACK numbers."""
        if optimizer != "muon":
            return 0.0
        config = self.config
        experts = 1 if config.moe is None else config.moe.num_experts
        numbers: Counter[tuple[int, int]] = Counter()
        for name, (inputs, outputs) in linear_layers(config).items():
            count = experts if name in FEED_FORWARD else 1
            numbers[inputs, outputs] += config.num_hidden_layers * count * inputs * outputs
        return 12.0 * min(max(numbers.values()), max(MUON_STACK, experts * config.hidden_size * config.intermediate_size))

    def block_bytes(self, size: int, compiled: bool) -> float:
        """Bytes that one block saves per token for the backward pass, at `size` bytes a number, with `blocked` attention.

        Uncompiled and compiled code save the outputs of the two norms, q, k, v, the output of attention (in two layouts: of
        attention and of the output projection), gate, up and their product. Uncompiled code also saves silu(gate), and two
        float32 copies inside each norm. Compiled code also saves the inputs of the norms, and the mask of the last block of
        queries (in rows of two blocks, k and v half as much again). A mixture saves its rows once for each of a token's
        experts; uncompiled, also the product of gate and up before it is multiplied by the expert's weight.
        """
        config, moe = self.config, self.config.moe
        width, heads, groups = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        queries, keys, inner = config.attention_size, config.head_size * groups, config.intermediate_size
        kept = (4 if compiled else 2) * width + 3 * queries + 2 * keys
        fixed = VISIBILITY_BYTES if compiled else 16 * width  # bytes, whatever `size`
        statistics = 4 * (2 + heads)  # of the norms and of the softmax
        if config.qk_norm:
            kept += queries + keys if compiled else 0
            fixed += 0 if compiled else 8 * (queries + keys)
            statistics += 4 * (heads + groups)
        feed = 3 if compiled else 4
        if moe is None:
            return size * (kept + feed * inner) + fixed + statistics
        kept += moe.num_experts_per_tok * ((feed if compiled else feed + 1) * inner + width)
        kept += feed * moe.num_shared_experts * inner + (width if moe.num_shared_experts else 0)
        if size < 4:  # the router reads a float32 copy, the experts rows of their own; the norm's output is for shared experts
            fixed += 4 * width
            kept -= 0 if compiled or moe.num_shared_experts else width
        statistics += (4 if compiled else 12) * moe.num_experts + 40 * moe.num_experts_per_tok + 8
        return size * kept + fixed + statistics

    def weight_copies(self, size: int) -> float:
        """Bytes of the copies of one block's weights that its products read: all matrices if `size` is less than the 4 bytes of
        the weights; else gate and up of routed experts, which are concatenated."""
        config, moe = self.config, self.config.moe
        if size < 4:
            router = 0 if moe is None else moe.num_experts * config.hidden_size
            return size * ((self._all_multiplying() - self.head_parameters) / config.num_hidden_layers - router)
        return 0.0 if moe is None else size * 2 * moe.num_experts * config.intermediate_size * config.hidden_size

    def frozen_savings(self, stored: float, size: int, every: int = 0) -> float:
        """Bytes that frozen matrices of dense blocks save if they are kept at `stored` bytes a number, and read by products at
        `size` bytes, instead of in float32 beside the copies of `weight_copies`, which blocks that are computed again do not
        keep. For a mixture of experts, whose experts stay as they are, 0."""
        if self.config.moe is not None:
            return 0.0
        return (4 - stored) * (self._all_multiplying() - self.head_parameters) + self.saved_copies(size, every)

    def saved_copies(self, size: int, every: int = 0) -> float:
        """Bytes of the copies of `weight_copies` that dense blocks keep for the backward pass, except blocks that are computed
        again; frozen matrices that are stored as products read them, or in 4 bits, need none."""
        if self.config.moe is not None:
            return 0.0
        layers = self.config.num_hidden_layers
        return (layers - len(checkpointed_layers(layers, every))) * self.weight_copies(size)

    def frozen_norm_bytes(self, every: int = 0) -> float:
        """Bytes that uncompiled code saves less per token where the weights of norms are frozen: one of the float32 copies of
        each norm of a block that is not computed again, and of the last one."""
        layers = self.config.num_hidden_layers
        return 4.0 * self.config.hidden_size * (2 * (layers - len(checkpointed_layers(layers, every))) + 1)

    def forward_bytes(self, tokens: int, size: int, scores: int = 0) -> float:
        """The most that a forward pass without gradients holds of a micro-batch: input and norm of a block, and in the norm two
        float32 copies, or in attention q, k, v and four arrays of `scores`, or in the feed-forward part gate, up, silu(gate)
        and their product. `scores`: float32 numbers of attention that a token has at a time."""
        config = self.config
        width, active = config.hidden_size, experts_of_token(config)
        heads = size * (config.attention_size + 2 * config.head_size * config.num_key_value_heads) + 4 * 4 * scores
        return tokens * (2 * size * width + max(8 * width, heads, size * 4 * active * config.intermediate_size))

    def backward_bytes(self, tokens: int, size: int, scores: int = 0) -> float:
        """Bytes of gradients inside a block beyond what it has saved: in the feed-forward part those of gate and up, while all
        factors of the product are there; in attention, when the feed-forward part is done with, float32 gradients of keys and
        values, those of queries, and five arrays of `scores` (as in `forward_bytes`), in low precision eight, because products
        are widened; and of the block's output. With the routed experts their rows and copies of weights are done with too."""
        config, moe = self.config, self.config.moe
        inner = size * experts_of_token(config) * config.intermediate_size
        freed = 3 * inner * tokens
        if moe is not None:
            freed += tokens * size * moe.num_experts_per_tok * (config.intermediate_size + config.hidden_size)
            freed += self.weight_copies(size) if size == 4 else 0
        heads = (
            size * config.attention_size
            + 8 * config.head_size * config.num_key_value_heads
            + (20 if size == 4 else 32) * scores
        )
        return tokens * size * config.hidden_size + max(2 * inner * tokens, heads * tokens - freed)

    def _all_multiplying(self) -> int:
        """Number of parameters in the matrix products of any token, all experts included."""
        counts = self.parameters()
        return counts.matmul + counts.total - counts.active

    def kept_bytes(self, tokens: int, size: int, compiled: bool, every: int = 0) -> float:
        """Bytes that a micro-batch of `tokens` tokens saves for the backward pass: in the blocks (each `every`-th one saves
        only its input; 0: none), the rotary angles, the last norm (never compiled) and the gradient of its output."""
        config = self.config
        recomputed = len(checkpointed_layers(config.num_hidden_layers, every))
        block = tokens * self.block_bytes(size, compiled) + self.weight_copies(size)
        angles = 2 * size * config.head_size
        rest = angles + (8 + size) * config.hidden_size + 4
        return (config.num_hidden_layers - recomputed) * block + tokens * (recomputed * size * config.hidden_size + rest)

    def activation_bytes(self, tokens: int, size: int, compiled: bool, every: int = 0) -> float:
        """The maximum of the bytes that a micro-batch saves at a time, with the activations of one recomputed block."""
        block = tokens * self.block_bytes(size, compiled) + self.weight_copies(size)
        again = checkpointed_layers(self.config.num_hidden_layers, every)
        later = self.config.num_hidden_layers - 1 - again[-1] if again else 0  # freed before the last one is computed again
        return self.kept_bytes(tokens, size, compiled, every) + (block if again and not later else 0)

    def masked_attention_bytes(self, tokens: int, row_length: int, size: int, every: int = 0) -> float:
        """Bytes of what `sdpa` keeps on CUDA for packed documents beyond `block_bytes`: one mask for all layers, and in each
        layer keys and values repeated for the heads that share them."""
        config = self.config
        queries, keys = config.attention_size, config.head_size * config.num_key_value_heads
        kept = max(1, config.num_hidden_layers - len(checkpointed_layers(config.num_hidden_layers, every)))
        return size * tokens * (row_length + kept * 2 * (queries - keys))

    def varlen_bytes(self, tokens: int, segments: int) -> float:
        """Bytes of the sums of the backward pass of `varlen`: float32, padded by 128 rows for each segment."""
        return 4.0 * self.config.attention_size * (tokens + 128 * segments)

    def peak_bytes(
        self, tokens: int, size: int, compiled: bool, optimizer: str, every: int = 0, adapter: int | None = None
    ) -> float:
        """Bytes of state and activations of a training step, without the program itself. `adapter`: as in `state_bytes`."""
        head_gradient = 4 * self.head_parameters if adapter is None else 0
        return self.state_bytes(optimizer, adapter) + self.activation_bytes(tokens, size, compiled, every) + head_gradient


def checkpointed_layers(layers: int, every: int) -> list[int]:
    """Indices of the blocks that are computed again in the backward pass: every `every`-th block; 0: none, 1: all."""
    return [] if every == 0 else list(range(every - 1, layers, every))


def training_flops_per_token(config: ModelConfig, vocab_size: int, context: int) -> float:
    """`ModelCost.training_flops` of a decoder of these sizes: 6·N for the matrices plus causal attention's
    12·layers·(width of all query heads)·context·½."""
    return ModelCost(config, vocab_size).training_flops(context)

"""What a decoder costs, from its sizes alone: for planning before anything is built, and for MFU after."""

from dataclasses import dataclass

from fledge.recipe.schema import ModelConfig


@dataclass(frozen=True)
class Parameters:
    """Counts of numbers. `active` are those that one token passes through; `multiplying` of them enter a matrix
    product (the embedding's lookup does not, the head does)."""

    total: int
    active: int
    multiplying: int


def parameters(config: ModelConfig, vocab_size: int) -> Parameters:
    """Parameters of the decoder, dense or mixture of experts."""
    width, head = config.hidden_size, config.hidden_size // config.num_attention_heads
    attention = 2 * width * width + 2 * width * head * config.num_key_value_heads
    norms = 2 * width + (2 * head if config.qk_norm else 0)
    expert = 3 * width * config.intermediate_size
    if config.moe is None:
        all_experts = active_experts = expert
    else:
        router = width * config.moe.experts
        all_experts = router + expert * (config.moe.experts + config.moe.shared_experts)
        active_experts = router + expert * (config.moe.top_k + config.moe.shared_experts)
    embedding = vocab_size * width
    tables = embedding * (1 if config.tie_word_embeddings else 2)
    layers = config.num_hidden_layers
    rest = tables + width + layers * (attention + norms)
    return Parameters(
        total=rest + layers * all_experts,
        active=rest + layers * active_experts,
        multiplying=embedding + layers * (attention + active_experts),
    )


def training_flops_per_token(config: ModelConfig, vocab_size: int, context: int) -> float:
    """6·N for the matrices (forward 2, backward 4) plus causal attention's 12·layers·width·context·½
    (Kaplan et al. 2020, §2.1; Chowdhery et al. 2022, appendix B)."""
    attention = 12 * config.num_hidden_layers * config.hidden_size * context / 2
    return 6 * parameters(config, vocab_size).multiplying + attention

"""Checks of the model's own sizes and settings."""

from collections.abc import Iterator

from fledge.findings import Finding
from fledge.plan.critic.planned_stage import PlannedStage

LARGE_TABLES = 2 / 3  # of all parameters; Gemma 3 270M has 0.63, SmolLM2-135M 0.21, Qwen2.5-0.5B 0.28
WANTED_TABLES = 1 / 3
MIN_VOCABULARY = 1024  # bytes and control tokens take the first 300: a smaller one is not large for any model


def dropout_in_one_epoch(planned: PlannedStage) -> Iterator[Finding]:
    """Dropout where each row is read once at most: there is nothing to learn by heart yet, and it costs loss (Liu et al. 2025,
    Drop Dropout on Single-Epoch Language Model Pretraining)."""
    dropout = planned.recipe.model.dropout
    is_only = len(planned.recipe.stages) == 1  # the key is one for all stages, and others may read their rows often
    if dropout and planned.starts_fresh and is_only and planned.plan.epochs <= 1:
        yield planned.finding(
            "model.dropout",
            f"dropout {dropout:g}, and each row is read {planned.plan.epochs:.2g} times: nothing can be learned by heart yet",
            "set model.dropout to 0",
            sure="likely",
            evidence={"dropout": dropout, "epochs": planned.plan.epochs},
            patch={"model.dropout": 0.0},
        )


def large_vocabulary(planned: PlannedStage) -> Iterator[Finding]:
    """A vocabulary whose tables are most of the model."""
    cost = planned.cost
    total, tables = cost.parameters().total, cost.table_parameters
    if not planned.has_native_sizes or cost.vocab_size <= MIN_VOCABULARY or tables <= LARGE_TABLES * total:
        return
    rows = WANTED_TABLES / (1 - WANTED_TABLES) * (total - tables) / (tables / cost.vocab_size)
    fewer = max(MIN_VOCABULARY, 64 * int(rows // 64))
    patch = {"tokenizer.vocab_size": fewer, **planned.of_other_data()}
    if planned.recipe.tokenizer.path:
        patch |= {"tokenizer.path": None}
    yield planned.finding(
        "tokenizer.vocab_size",
        f"{cost.vocab_size:,} tokens take {tables / total:.0%} of {total / 1e6:.1f}M parameters: little is left for the blocks",
        f"train a tokenizer of {fewer:,} tokens, or make the model larger",
        sure="likely",
        evidence={"vocab_size": cost.vocab_size, "tables_share": tables / total, "parameters": total},
        patch=patch,
    )


def unbalanced_experts(planned: PlannedStage) -> Iterator[Finding]:
    """A mixture of experts that nothing keeps in balance: a few experts then take all tokens (Shazeer et al. 2017, §4)."""
    moe = planned.recipe.model.moe
    if moe is not None and moe.num_experts > 1 and moe.load_balancing == "aux_loss" and not moe.router_aux_loss_coef:
        yield planned.finding(
            "model.moe.router_aux_loss_coef",
            f"nothing balances the {moe.num_experts} experts: a few of them may get all tokens",
            "set model.moe.router_aux_loss_coef to 0.01, or model.moe.load_balancing to bias",
            sure="likely",
            evidence={"num_experts": moe.num_experts, "router_aux_loss_coef": 0.0},
            patch={"model.moe.router_aux_loss_coef": 0.01},
        )

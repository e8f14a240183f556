"""Checks of the training data: its lengths against the context, its amount against the model, and its labels."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from fledge.data.encoding.examples import prompt_length
from fledge.findings import Finding
from fledge.plan.critic.planned_stage import PlannedStage, counted
from fledge.recipe.sections.policy import PolicySettings
from fledge.recipe.sections.preference import KtoSettings

PARAMETERS_PER_TOKEN = 100  # of fresh weights, for each training token of an epoch
MOST_CUT = 0.5  # of the rows of a stage; from 5 % of a source on, `fledge data check` tells
FAR_ABOVE = 8  # times the longest row
MAX_IMBALANCE = 5.0  # of the weighted labels; Ethayarajh et al. (2024) advise 1 to 4/3


def short_context(planned: PlannedStage) -> Iterator[Finding]:
    """A context that cuts the answers of most rows."""
    sources = [one for one in (planned.report.sources if planned.report else ()) if one.split == "train"]
    used, cut = sum(one.used_rows for one in sources), sum(one.truncated_rows for one in sources)
    by_completion = any("answer cut to max_completion_length" in one.first_events for one in sources)
    if cut <= MOST_CUT * used or by_completion:
        return
    lost, context = sum(one.lost_tokens for one in sources), planned.plan.context
    wanted = 2 ** math.ceil(math.log2(context + 2 * lost / cut))  # half of the rows at most lose more than twice the mean
    yield planned.finding(
        "data.max_seq_len",
        f"the answers of {cut:,} of {used:,} rows are cut to the context of {context:,} tokens ({lost:,} tokens are lost): the "
        "model learns few ends of answers",
        f"set data.max_seq_len to {wanted:,}, or leave long rows out",
        sure="certain",
        evidence={"cut_rows": cut, "rows": used, "lost_tokens": lost, "context": context},
        patch=planned.other_context(wanted),
    )


def long_context(planned: PlannedStage) -> Iterator[Finding]:
    """A context far above the longest row. Rows are packed, so this costs no time; but no position beyond the longest row is
    trained, and an update reads more rows than its batch says. With labels there is no patch: how many rows of another length
    hold answers of both is known only when they are packed."""
    longest, context = int((np.diff(planned.train.examples.offsets) - 1).max()), planned.plan.context
    if FAR_ABOVE * longest <= context and planned.train.packs:
        together = planned.train.pieces_per_row
        enough = max(8, 2 ** math.ceil(math.log2(longest)))
        yield planned.finding(
            "data.max_seq_len",
            f"the longest row has {longest:,} tokens, and the context {context:,}: about {together:,.0f} rows share a packed "
            "row, and no later position is trained",
            f"data.max_seq_len {enough:,} would do",
            sure="certain",
            evidence={"longest": longest, "context": context, "rows_of_packed_row": together},
            patch=planned.other_context(enough) if planned.train.examples.labels is None else None,
            severity="info",
        )


def long_prompts(planned: PlannedStage) -> Iterator[Finding]:
    """Prompts that leave less room than an answer may take."""
    stage, examples = planned.stage, planned.train.examples
    if not isinstance(stage, PolicySettings):
        return
    longest = stage.data.max_seq_len + 1 - stage.rollout.max_new_tokens
    lengths = [prompt_length(examples.sequence(number)[1]) for number in range(examples.count)]
    count = sum(length > longest for length in lengths)
    if count:
        wanted = max(lengths) + stage.rollout.max_new_tokens - 1
        room = stage.data.max_seq_len + 1 - max(lengths)
        fewer = planned.patch(rollout__max_new_tokens=room) if room > 0 else None
        is_judged = any(one.model is not None for one in stage.rewards)  # by a model, whose positions may be too few for more
        patch = fewer if is_judged else planned.other_context(wanted) or fewer
        yield planned.finding(
            "data.max_seq_len",
            f"{counted(count, 'prompt')} of {examples.count:,} leave fewer than {stage.rollout.max_new_tokens:,} tokens for an "
            f"answer; the longest has {max(lengths):,} tokens",
            f"set data.max_seq_len to {wanted:,}, or rollout.max_new_tokens to less",
            sure="certain",
            evidence={"prompts": count, "longest": max(lengths), "max_new_tokens": stage.rollout.max_new_tokens},
            patch=patch,
        )


def _smaller_model(planned: PlannedStage) -> dict[str, Any] | None:
    """A patch with the widest model that the data bears, of half the width, a quarter, …; None if none is known."""
    config, limit = planned.cost.config, PARAMETERS_PER_TOKEN * planned.train.num_tokens
    for divisor in (2, 4, 8, 16, 32) if planned.has_native_sizes and config.head_dim is None else ():
        sizes = {name: getattr(config, name) // divisor for name in ("hidden_size", "intermediate_size")}
        if sizes["hidden_size"] % (2 * config.num_attention_heads) or not sizes["intermediate_size"]:
            break
        if type(planned.cost)(config.model_copy(update=sizes), planned.cost.vocab_size).parameters().total <= limit:
            return {f"model.{name}": size for name, size in sizes.items()}
    return None


def model_above_data(planned: PlannedStage) -> Iterator[Finding]:
    """Fresh weights far beyond what the data can teach."""
    tokens, parameters = planned.train.num_tokens, planned.plan.parameters
    if planned.starts_fresh and parameters > PARAMETERS_PER_TOKEN * tokens:
        yield planned.finding(
            "data.train",
            f"{parameters / 1e6:.1f}M fresh parameters, {tokens:,} tokens an epoch: the model can only learn the rows by heart",
            "use far more data, a smaller model (model.hidden_size, model.num_hidden_layers), or a trained model (init_from)",
            sure="likely",
            evidence={"parameters": parameters, "tokens": tokens},
            patch=_smaller_model(planned),
        )


def unbalanced_labels(planned: PlannedStage) -> Iterator[Finding]:
    """Labelled answers of which one kind outweighs the other."""
    labels, stage = planned.train.examples.labels, planned.stage
    if labels is None or not isinstance(stage, KtoSettings):
        return
    good, bad = int(labels.sum()), int((~labels.astype(bool)).sum())
    if not good or not bad:  # an error of the plan
        return
    ratio = good * stage.desirable_weight / (bad * stage.undesirable_weight)
    if 1 / MAX_IMBALANCE <= ratio <= MAX_IMBALANCE:
        return
    key, weight = "undesirable_weight", stage.undesirable_weight * ratio
    if ratio < 1:
        key, weight = "desirable_weight", stage.desirable_weight / ratio
    yield planned.finding(
        key,
        f"{good:,} desirable and {bad:,} undesirable answers, weighted {ratio:.2g} to 1: the fewer ones hardly count",
        f"set {key} to {weight:.2g}",
        sure="likely",
        evidence={"desirable": good, "undesirable": bad, "ratio": ratio},
        patch={planned.key(key): float(f"{weight:.2g}")},
    )

"""Causes in the model: what learns and what must not, who attends to whom, experts, and files."""

from fledge.diagnosis.case import Case
from fledge.diagnosis.cause import Cause, Sign
from fledge.diagnosis.causes.consequences import FAULTY_ANSWERS, LEARNS_LITTLE, STANDS_STILL
from fledge.diagnosis.causes.signs import (
    above,
    below,
    count,
    late_level,
    number,
    other_setting,
    probed_updates,
    sign,
    span,
    strongest,
    updates,
)
from fledge.diagnosis.thresholds import threshold
from fledge.findings import Confidence

ADAPTERS = ("lora", "qlora")
TEXTS = ("chat_template", "tokenizer_config", "generation_config")
"""Files of a checkpoint that people edit: a change of them alone is another template rather than a damage."""

FROZEN = "tensors that do not learn"
IDLE_ADAPTER = "adapter never updates"
FROZEN_CHANGE = "frozen tensors change"
UNTIED = "tied head broken"
DROPOUT = "dropout active in evaluation"
MUCH_DROPOUT = "dropout too strong"
FUTURE = "model sees the future"
DOCUMENTS = "packed documents see each other"
PADDING = "padding is attended"
EXPERTS = "experts collapsed"
DAMAGED = "checkpoint damaged"


def _limit(name: str) -> float:
    return threshold("model", name)


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:3])
    return f" ({shown}{' and others' if len(names) > 3 else ''})" if names else ""


def _idle(case: Case, name: str) -> tuple[int, tuple[str, ...]] | None:
    """How many tensors a figure names that should learn; the first matrices of a fresh adapter wait for the second ones."""
    found = count(case, name)
    if found is None or not found[1]:
        return found
    names = tuple(one for one in found[1] if "lora_A" not in one)
    return len(names), names


def _still_groups(case: Case) -> list[str]:
    """Kinds of matrices whose updates are exactly 0 in the whole log, while those of others are not."""
    series = {name: case.log.get(name) for name in case.log.series if name.startswith("update_ratio/")}
    peaks = {
        name: float(one.values.max()) for name, one in series.items() if one is not None and len(one) >= _limit("few_points")
    }
    return sorted(name for name, peak in peaks.items() if peak == 0) if any(peak > 0 for peak in peaks.values()) else []


def frozen(case: Case) -> Sign | None:
    """Tensors that should be trained and are not."""
    missing, unchanged = count(case, "probe/missing_from_optimizer"), _idle(case, "probe/unchanged_tensors")
    unmoved, still = _idle(case, "probe/unmoved_tensors"), _still_groups(case)
    trained, all_of = case.settings.trained_parameters, case.settings.parameters
    if missing is not None and missing[0] > 0:
        what = f"{missing[0]} tensors that are to be trained are in no optimizer{_listed(missing[1])}"
    elif unchanged is not None and unchanged[0] > 0:
        what = f"one update leaves {unchanged[0]} tensors unchanged that are to be trained{_listed(unchanged[1])}"
    elif unmoved is not None and unmoved[0] > 0 and (probed_updates(case) or 0) >= _limit("enough_updates"):
        what = f"{unmoved[0]} tensors that are to be trained are as they were at the start{_listed(unmoved[1])}"
    elif still:
        what = f"the updates of {', '.join(still)} are 0 in the whole log, and those of others are not"
    else:
        return _trains_a_part(case, trained, all_of)
    return sign(
        FROZEN,
        "certain",
        f"a part of the model does not learn: {what}",
        hint="give the optimizer all parameters that require a gradient, after the model (and its adapter) has its final form; "
        "look for requires_grad = False",
        evidence={
            "probe/missing_from_optimizer": case.value("probe/missing_from_optimizer"),
            "probe/unchanged_tensors": case.value("probe/unchanged_tensors"),
            "probe/unmoved_tensors": case.value("probe/unmoved_tensors"),
            "groups without updates": still or None,
        },
        proof="make one update and compare every tensor with what it was: each one must have changed",
        alternatives={"learning rate zero": "the learning rate column, where all tensors stand still"},
        steps=span(*(case.log.get(name) for name in still)),
    )


def _trains_a_part(case: Case, trained: float | None, all_of: float | None) -> Sign | None:
    """Full training of a part of the weights, by the counts of the settings."""
    if case.settings.method != "full" or trained is None or not all_of or trained >= _limit("trained_share") * all_of:
        return None
    is_meant = other_setting(case, "freeze", "freeze_layers", "trainable", "finetuning_type", "freeze_trainable_layers")
    confidence: Confidence = "possible" if is_meant else "likely"
    return sign(
        FROZEN,
        confidence,
        f"only {trained:,.0f} of {all_of:,.0f} parameters are trained, though the whole model is to be",
        hint="look for requires_grad = False and for parameters that the optimizer was not given",
        evidence={"trained_parameters": trained, "parameters": all_of},
        proof="make one update and compare every tensor with what it was: each one must have changed",
        alternatives={"a part is frozen on purpose": "the settings of the trainer"},
    )


def idle_adapter(case: Case) -> Sign | None:
    """The second matrices of an adapter are 0 after many updates, or one update leaves them as they are."""
    if case.settings.method not in (None, *ADAPTERS):
        return None
    norm, done = number(case, "probe/adapter_b_norm"), probed_updates(case) or 0
    unchanged = count(case, "probe/unchanged_tensors")
    still = [one for one in unchanged[1] if "lora_B" in one] if unchanged is not None else []
    is_zero = norm is not None and abs(norm) <= _limit("adapter_norm") and done >= _limit("adapter_updates")
    if not is_zero and not still:
        return None
    what = f"the norm of its second matrices (B) is 0 after {done:,.0f} updates"
    if not is_zero:
        what = f"one update leaves {len(still)} of its second matrices (B) unchanged{_listed(tuple(still))}"
    return sign(
        IDLE_ADAPTER,
        "certain",
        f"the adapter does not learn: {what}, so the model is still the one before",
        hint="make the optimizer after the adapter was added; with gradient checkpointing call enable_input_require_grads; "
        "look "
        "whether fp16 skips every update",
        evidence={"probe/adapter_b_norm": norm, "updates": done, "unchanged B": still or None},
        proof="make twenty updates: the norm of the B matrices must be above 0",
        alternatives={"learning rate zero": "the learning rate column", "fp16 overflow": "the loss scale and skipped steps"},
    )


def frozen_change(case: Case) -> Sign | None:
    """Tensors that should stay as they are and do not."""
    found = count(case, "probe/changed_frozen")
    if found is None or found[0] == 0:
        return None
    return sign(
        FROZEN_CHANGE,
        "certain",
        f"one update changes {found[0]} tensors that are to stay as they are{_listed(found[1])}",
        hint="set requires_grad = False for them before the optimizer is made, and leave them out of its groups",
        evidence={"probe/changed_frozen": list(found[1]) or found[0]},
        proof="make one update and compare every tensor with what it was: only those that are trained may have changed",
    )


def untied(case: Case) -> Sign | None:
    """Head and embedding are two tensors, though the configuration ties them."""
    tied = number(case, "probe/head_tied")
    if tied is None or tied != 0:
        return None
    return sign(
        UNTIED,
        "certain",
        "head and embedding are two tensors, and the configuration says that they are one: what is saved or served is not what "
        "was trained",
        hint="tie the weights again after each load, resize or move of the model (tie_weights), or set tie_word_embeddings to "
        "false",
        evidence={"probe/head_tied": False},
        proof="compare the address and the values of both tensors when the model is built, saved and loaded",
    )


def dropout(case: Case) -> Sign | None:
    """Two passes in evaluation mode differ."""
    passes, evaluations = number(case, "probe/two_passes"), number(case, "probe/evaluation_dropout")
    confidence = strongest(
        above("model", "passes_differ", None if passes is None else abs(passes)),
        above("model", "evaluations_differ", None if evaluations is None else abs(evaluations)),
    )
    if confidence is None:
        return None
    told = [f"logits by up to {passes:.3g}" if passes else "", f"validation losses by {evaluations:.3g}" if evaluations else ""]
    return sign(
        DROPOUT,
        confidence,
        f"two evaluations of the same rows differ ({' and '.join(one for one in told if one)}): dropout or other chance is "
        "active "
        "in evaluation",
        hint="switch the model to evaluation mode before it is evaluated (model.eval()), and back to training mode after it",
        evidence={"probe/two_passes": passes, "probe/evaluation_dropout": evaluations, "dropout": case.settings.dropout},
        proof="evaluate the same rows twice: the losses must be equal",
    )


def much_dropout(case: Case) -> Sign | None:
    """A dropout far above what small models bear; more sure where the loss without it is much lower."""
    share = case.settings.dropout
    confidence = above("model", "dropout", share)
    if share is None or confidence is None:
        return None
    logged, without = late_level(case, "train/loss"), number(case, "probe/training_loss")
    told = ""
    if logged is not None and without is not None:
        told = f"; the training loss is {logged:.3f} with it and {without:.3f} without"
        if logged - without >= _limit("dropout_costs") * logged:
            confidence = "certain" if confidence == "likely" else "likely"
    return sign(
        MUCH_DROPOUT,
        confidence,
        f"{share:.0%} of what the layers compute is dropped: so much noise keeps a model from learning{told}",
        hint="set dropout to 0; to 0.1 at most where small data is read many times",
        proof="train some updates with and without dropout and compare the validation loss",
        evidence={"dropout": share, "train/loss": logged, "probe/training_loss": without},
        patch={"model.dropout": 0.0},
        severity="warning",
        steps=span(case.log.get("train/loss")),
    )


def _leak(case: Case, measure: str, limit: str) -> float | None:
    """A change of logits that should be none, where it is above rounding."""
    change = number(case, measure)
    return change if change is not None and abs(change) > _limit(limit) else None


def future(case: Case) -> Sign | None:
    """Earlier logits change with later tokens."""
    change = _leak(case, "probe/future_leak", "leak")
    if change is None:
        return None
    return sign(
        FUTURE,
        "certain",
        f"the model sees the future: logits change by up to {change:.3g} when a later token changes",
        hint="look at the causal mask: is_causal must be set where no mask is given, and a mask of one's own must be "
        "triangular",
        evidence={"probe/future_leak": change},
        proof="change the last token of a text: the logits before it must stay as they are",
    )


def documents(case: Case) -> Sign | None:
    """Packed documents attend to each other."""
    change = _leak(case, "probe/document_leak", "leak")
    if change is None:
        return None
    return sign(
        DOCUMENTS,
        "certain",
        f"packed documents see each other: logits of a document change by up to {change:.3g} with the document before it",
        hint="keep packed documents apart, by their positions (position_ids that begin again at 0) or a block mask",
        evidence={"probe/document_leak": change},
        proof="compute a document alone and packed: its logits must be equal",
    )


def padding(case: Case) -> Sign | None:
    """Padding changes the logits."""
    change = _leak(case, "probe/padding_leak", "leak")
    if change is None:
        return None
    return sign(
        PADDING,
        "certain",
        f"padding is attended: logits change by up to {change:.3g} when the padding changes",
        hint="give the model the attention mask, and pad on the side that it expects",
        evidence={"probe/padding_leak": change},
        proof="compute a row with and without padding: its logits must be equal",
    )


def experts(case: Case) -> Sign | None:
    """Experts without tokens, while others have most of them."""
    dead, load = number(case, "probe/dead_experts"), number(case, "probe/expert_load")
    least, most = late_level(case, "router/min_load"), late_level(case, "router/max_load")
    early = (updates(case) or 0) < _limit("router_updates")
    is_start = (probed_updates(case) or 0) < _limit("router_updates")
    probed = None if is_start else above("model", "dead_experts", dead)
    watched = None if least is None or most is None or most < _limit("busiest") else below("model", "idlest", least)
    confidence = strongest(probed, watched)
    if confidence is None or early:
        return None
    told = [f"{dead:.1%} of the experts get no token of a sample" if dead else ""]
    if least is not None and most is not None:
        told.append(f"the idlest expert has {least:.2f} and the busiest {most:.2f} times the even load at the end of the log")
    return sign(
        EXPERTS,
        confidence,
        f"tokens go to a few experts only: {', and '.join(one for one in told if one)}",
        hint="raise the weight of the load-balancing loss (router_aux_loss_coef, about 0.01), or balance by a bias on the "
        "choice",
        evidence={
            "probe/dead_experts": dead,
            "probe/expert_load": load,
            "router/min_load": least,
            "router/max_load": most,
            "router/entropy": late_level(case, "router/entropy"),
        },
        patch={"model.moe.load_balancing": "aux_loss", "model.moe.router_aux_loss_coef": _limit("router_aux_loss_coef")},
        proof="train some hundred updates with the balancing loss: each expert must get at least a tenth of the even load",
        steps=span(case.log.get("router/min_load")),
    )


def damaged(case: Case) -> Sign | None:
    """Files of checkpoints that are not those that were written."""
    found = count(case, "probe/files_damaged")
    if found is None or found[0] == 0:
        return None
    is_text = bool(found[1]) and all(any(one in name for one in TEXTS) for name in found[1])
    what = f"{found[0]} files of checkpoints are damaged{_listed(found[1])}"
    if is_text:
        what = f"{found[0]} files of templates and tokenizers are not as they were saved{_listed(found[1])}"
    return sign(
        DAMAGED,
        "likely" if is_text else "certain",
        what,
        hint="go on from an older checkpoint that is whole; look for a full disk, a copy that was broken off, or a killed "
        "process",
        evidence={"probe/files_damaged": list(found[1]) or found[0]},
        proof="compare size and hash of each file with the manifest",
    )


CAUSES = (
    Cause(
        name=FROZEN,
        category="model",
        find=frozen,
        explains=STANDS_STILL | {IDLE_ADAPTER},
        rank=6,
    ),
    Cause(name=IDLE_ADAPTER, category="model", find=idle_adapter, explains=STANDS_STILL | {FROZEN}, rank=5),
    Cause(
        name=FROZEN_CHANGE,
        category="model",
        find=frozen_change,
        explains=frozenset({"forgetting"}),
        needs=("probe/changed_frozen",),
        rank=15,
    ),
    Cause(
        name=UNTIED,
        category="model",
        find=untied,
        explains=LEARNS_LITTLE | {DAMAGED, "logged loss is wrong"},
        needs=("probe/head_tied",),
        rank=16,
    ),
    Cause(
        name=DROPOUT,
        category="evaluation",
        find=dropout,
        explains=frozenset({"high level", "logged loss is wrong", "train-validation gap", "validation too noisy"}),
        rank=18,
    ),
    Cause(
        name=MUCH_DROPOUT,
        category="model",
        find=much_dropout,
        explains=LEARNS_LITTLE | {"train-validation gap", "validation on training data"},
        setting=True,
        rank=36,
    ),
    Cause(
        name=FUTURE,
        category="model",
        find=future,
        explains=FAULTY_ANSWERS | {"logged loss is wrong", "loss near zero", "train-validation gap"},
        needs=("probe/future_leak",),
        rank=1,
    ),
    Cause(
        name=DOCUMENTS,
        category="model",
        find=documents,
        explains=frozenset({"logged loss is wrong", "high level", "wrong reference"}),
        needs=("probe/document_leak",),
        rank=4,
    ),
    Cause(
        name=PADDING,
        category="model",
        find=padding,
        explains=frozenset({"logged loss is wrong", "high level"}),
        needs=("probe/padding_leak",),
        rank=17,
    ),
    Cause(name=EXPERTS, category="model", find=experts, explains=LEARNS_LITTLE | {"loss spikes"}, setting=True, rank=27),
    Cause(
        name=DAMAGED,
        category="machine",
        find=damaged,
        explains=frozenset({"stopped by an error"}),
        needs=("probe/files_damaged",),
        rank=3,
    ),
)
"""The causes in the model."""

"""What a changed recipe of a run costs: updates, tokens and time, from the run's own figures."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fledge.diagnosis import Case
from fledge.diagnosis.causes.batch import is_counted_in_tokens, is_counted_in_updates, micro_batches
from fledge.diagnosis.facts import facts_of
from fledge.doctor.synonyms import stage_key
from fledge.recipe.units import Duration

MICRO, ACCUMULATION, PER_STEP = "batch.micro_batch_size", "batch.gradient_accumulation_steps", "batch.tokens_per_step"
CONTEXT = "data.max_seq_len"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a whole stage takes with a change; None: not known. `seconds`: of training, by the step time that the run measured.
    `memory`: of a step, beside what was measured."""

    updates: float | None
    tokens: float | None
    seconds: float | None
    memory: str

    def as_dict(self) -> dict[str, Any]:
        """The cost as JSON values."""
        return asdict(self)


def cost_of(case: Case, patch: Mapping[str, Any]) -> Cost:
    """The cost of the whole stage with a patch. Rows, tokens and step time are the run's own: time goes with the tokens."""
    values = {stage_key(key): value for key, value in patch.items()}
    facts = facts_of(case)
    larger = batch_factor(case, values)
    updates, tokens = facts.whole_steps, facts.tokens
    longer = _longer(case, values, larger)
    changed = None if updates is None else updates * longer / larger
    seconds = _step_seconds(case)
    return Cost(
        updates=None if changed is None else float(round(changed)),
        tokens=None if tokens is None else float(round(tokens * longer)),
        seconds=None if seconds is None or updates is None else seconds * updates * longer,
        memory=_memory(case, values),
    )


def batch_factor(case: Case, values: Mapping[str, Any]) -> float:
    """Tokens of an update with the change ÷ before, of rows that are full; 1 where one of them is not known."""
    settings, per_step = case.settings, values.get(PER_STEP)
    if isinstance(per_step, int | float) and settings.batch_tokens:
        return float(per_step) / settings.batch_tokens
    if is_counted_in_tokens(case) and PER_STEP not in values:  # whatever the micro-batches
        return 1.0
    micro, written = settings.micro_batch_rows, float(micro_batches(case))
    new_micro, new_accumulation = values.get(MICRO), values.get(ACCUMULATION, written)
    longer = _context_factor(case, values)
    if not micro or not isinstance(new_micro, int | float):
        return longer * (float(new_accumulation) / written if ACCUMULATION in values else 1.0)
    return longer * float(new_micro) * float(new_accumulation) / (micro * written)


def _context_factor(case: Case, values: Mapping[str, Any]) -> float:
    """Tokens of a row with the change ÷ before; 1 where one of them is not known."""
    before, after = case.settings.context, values.get(CONTEXT)
    return float(after) / before if before and isinstance(after, int | float) else 1.0


def _longer(case: Case, values: Mapping[str, Any], larger: float) -> float:
    """Tokens of the stage with the change ÷ before."""
    written, settings = values.get("duration"), case.settings
    if not isinstance(written, str):
        return larger if is_counted_in_updates(case) else 1.0
    duration = Duration.parse(written)
    facts = facts_of(case)
    before = {"epochs": settings.epochs, "steps": facts.whole_steps, "tokens": facts.tokens}[duration.unit]
    if not before:
        return 1.0
    return duration.amount / before * (larger if duration.unit == "steps" else 1.0)


def _step_seconds(case: Case) -> float | None:
    measured = case.value("curve/step_seconds")
    return float(measured) if isinstance(measured, int | float) and measured > 0 else None


def _memory(case: Case, values: Mapping[str, Any]) -> str:
    before, after = case.settings.micro_batch_rows, values.get(MICRO)
    grown = _context_factor(case, values)
    if before and isinstance(after, int | float):
        grown *= after / before
    peak = case.log.get("system/peak_memory_bytes") or case.log.get("system/memory_bytes")
    known = "" if peak is None else f", {float(peak.values.max()) / 2**30:.2f} GiB were measured"
    if grown == 1:
        return f"as before{known}"
    if grown < 1:
        return f"less than before{known}: a micro-batch has {grown:.2g} times as many tokens"
    return f"up to {grown:.2g} times as much for activations{known}: `fledge plan` says it exactly"

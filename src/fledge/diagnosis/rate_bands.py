"""The band in which the learning rate of a run should lie, by fledge's own rules and by published ones.

A rate outside of its band is no mistake by itself; the band says what laws and trials of such runs would have chosen.
"""

from dataclasses import dataclass, replace

from fledge.diagnosis.case import Case
from fledge.diagnosis.facts import Facts
from fledge.diagnosis.thresholds import threshold
from fledge.plan.bands import RATE_FACTOR, ladder, step_law
from fledge.plan.hyperparameters import FINE_TUNING_SHARES, TRIED_ADAPTERS, TRIED_WIDTH, RunSize, derived_rate, fine_tuning_rate
from fledge.recipe.sections.engine import ADAPTER_RATE_FACTOR, USUAL_RATES

OPTIMIZERS = {"muon": "muon", "adafactor": None, "sgd": None, "lion": None, "sophia": None, "adagrad": None}
"""Word in the name of an optimizer → the one whose rates hold for it; None: none are known. Without such a word: AdamW."""
USUAL_WIDTH = 2048  # of the models from which the usual rates come, at least
UNKNOWN_BATCHES = (512, 131_072)  # tokens of an update, smallest and largest, of a run that does not say them
GENERIC = (1e-7, 2e-2)  # rates of AdamW outside of which nobody trains


@dataclass(frozen=True)
class RateBand:
    """`low` … `high`: rates that laws and trials would choose; `middle`: the one that fledge would choose; `source`: of the
    band, in words. `is_own`: whether it was derived for a run of this kind and size; else it is that of usual runs."""

    low: float
    high: float
    middle: float
    source: str
    is_own: bool = True


def rate_band(case: Case, facts: Facts) -> RateBand | None:
    """The band of the peak learning rate; None where the optimizer's rates are not comparable with those of AdamW or Muon."""
    name = _optimizer(case)
    if name is None:
        return None
    size = _size(facts)
    if facts.is_fresh and size is not None and not facts.has_adapter:
        return _fresh_band(name, size, facts)
    if name != "adamw":
        return None
    if facts.is_fresh is False or case.kind in USUAL_RATES:
        return _trained_band(case, facts, size)
    return RateBand(*GENERIC, 1e-4, "no trainer of AdamW uses rates beyond these", is_own=False)


def _optimizer(case: Case) -> str | None:
    """The optimizer whose rates the run's are compared with. Rates of Muon differ by trainer: only fledge's own are known."""
    written = (case.settings.optimizer or "adamw").lower()
    for word, known in OPTIMIZERS.items():
        if word in written:
            return known if known is None or "fledge" in case.log.source.lower() else None
    return "adamw"


def _size(facts: Facts) -> RunSize | None:
    steps = facts.whole_steps
    if not facts.width or not steps:
        return None
    batch = facts.batch_tokens or threshold("expectations", "unknown_batch_tokens")
    tokens = facts.tokens or batch * steps
    return RunSize(max(1, round(facts.width)), max(1, round(batch)), max(1, round(steps)), max(1, round(tokens)))


def _with_any_batch(size: RunSize, facts: Facts, *between: RunSize) -> list[RunSize]:
    """The size with the smallest and the largest batch that the run may have had, and `between` these two; itself where the
    batch is known."""
    if facts.batch_tokens is not None:
        return [size, *between, size]
    ends = [replace(size, batch_tokens=batch, tokens=batch * size.steps) for batch in UNKNOWN_BATCHES]
    return [ends[0], *between, ends[1]]


def _fresh_band(name: str, size: RunSize, facts: Facts) -> RateBand:
    """For fresh weights: of fledge's rule and published laws; the latter were fitted on larger models, and for small ones allow
    rates that diverge, so they count for the low end alone."""
    own = derived_rate(name, size)[0]
    least, most = (derived_rate(name, one)[0] for one in _with_any_batch(size, facts))
    if name != "adamw":
        source = f"fledge's trials {own:.2g} for this width, batch and length"
        return RateBand(least / RATE_FACTOR, most * RATE_FACTOR, own, source)
    parameters = facts.parameters or 12 * size.width**3 / 64
    laws = [step_law(parameters, size.tokens)[0], ladder(parameters)[0]]
    low, high = min(*laws, least), max(*laws, most) if parameters >= threshold("expectations", "laws_hold_from") else most
    source = f"Step Law (Li et al. 2025) {laws[0]:.2g}, OLMo's ladder {laws[1]:.2g}, fledge's trials {own:.2g}"
    return RateBand(low, high, own, source)


def _trained_band(case: Case, facts: Facts, size: RunSize | None) -> RateBand:
    """For weights that are trained already: fledge's trials where such runs were tried, else the usual rates."""
    kind = case.kind if case.kind in USUAL_RATES else "sft"
    method_is_known = case.settings.method is not None or facts.has_adapter or "fledge" in case.log.source.lower()
    tried = size is not None and size.width <= TRIED_WIDTH and kind in FINE_TUNING_SHARES
    if tried and case.kind == kind and (not facts.has_adapter or kind in TRIED_ADAPTERS) and method_is_known:
        assert size is not None
        least, rate, most = (
            fine_tuning_rate(kind, "adamw", one, facts.has_adapter)[0] for one in _with_any_batch(size, facts, size)
        )
        source = f"fledge's trials: about {rate:.2g} for this kind of stage, width, batch and length"
        return RateBand(least / RATE_FACTOR, most, rate, source)
    usual = USUAL_RATES[kind] * (ADAPTER_RATE_FACTOR if facts.has_adapter else 1)
    low, high = usual / threshold("expectations", "usual_low"), usual * threshold("expectations", "usual_high")
    if facts.width and facts.width < USUAL_WIDTH:
        high *= USUAL_WIDTH / facts.width
    if not method_is_known:
        high *= ADAPTER_RATE_FACTOR
    source = f"usual rates for weights that are trained already: about {usual:.2g}"
    return RateBand(low, high, usual, source, is_own=method_is_known)


def batch_band(facts: Facts) -> tuple[float, float, str] | None:
    """(low, high, source) of the tokens of an update, for fresh weights; None where they are not known."""
    if not facts.is_fresh or not facts.parameters or not facts.tokens:
        return None
    batches = [step_law(facts.parameters, facts.tokens)[1], ladder(facts.parameters)[1]]
    source = f"Step Law {batches[0]:,.0f}, OLMo's ladder {batches[1]:,.0f} tokens"
    return min(batches) / RATE_FACTOR, max(batches) * RATE_FACTOR, source

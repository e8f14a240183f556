"""The table of the checks of a plan. A new check is an entry of `CHECKS`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from fledge.findings import Finding
from fledge.plan.critic import data, evaluation, length, machine, model, objective, rates
from fledge.plan.critic.planned_stage import PlannedStage


@dataclass(frozen=True)
class Check:
    """One check of a plan. `find` yields its findings. `of_run`: it reads what is the same for all stages, so it is made once,
    for the first of them. `needs_data`: it reads rows or validation data; others need the amount of the data at most."""

    name: str
    find: Callable[[PlannedStage], Iterator[Finding]]
    of_run: bool = False
    needs_data: bool = False


CHECKS = (
    Check("few updates", length.few_updates),
    Check("batch above data", length.batch_above_data),
    Check("many epochs", length.many_epochs, needs_data=True),
    Check("long warm-up", length.long_warmup),
    Check("lost work", length.lost_work),
    Check("small rate", rates.rate_too_small),
    Check("large rate", rates.rate_too_large),
    Check("rate of weights", rates.adapter_rate_of_weights),
    Check("no warm-up", rates.no_warmup),
    Check("flat schedule", rates.flat_schedule),
    Check("weight decay", rates.strong_weight_decay),
    Check("few validation rows", evaluation.few_validation_rows, needs_data=True),
    Check("evaluation not reached", evaluation.evaluation_not_reached, needs_data=True),
    Check("costly evaluation", evaluation.costly_evaluation, needs_data=True),
    Check("idle early stopping", evaluation.idle_early_stopping),
    Check("hasty early stopping", evaluation.hasty_early_stopping),
    Check("short answers in evaluation", evaluation.answers_cut_in_evaluation, needs_data=True),
    Check("short context", data.short_context, needs_data=True),
    Check("long context", data.long_context, needs_data=True),
    Check("long prompts", data.long_prompts, needs_data=True),
    Check("model above data", data.model_above_data),
    Check("unbalanced labels", data.unbalanced_labels, needs_data=True),
    Check("answers from fresh weights", objective.answers_from_fresh_weights),
    Check("beta", objective.beta_of_another_loss),
    Check("equal answers in groups", objective.equal_answers_in_groups),
    Check("rank above width", objective.rank_above_width),
    Check("dropout in one epoch", model.dropout_in_one_epoch),
    Check("large vocabulary", model.large_vocabulary, of_run=True),
    Check("unbalanced experts", model.unbalanced_experts, of_run=True),
    Check("precision", machine.precision, of_run=True),
)


def plan_findings(planned: PlannedStage) -> list[Finding]:
    """All findings about a stage, each with the name of its check; the first stage has those about the run too. None is an
    error: the stage can be trained. Where the data is not at hand, checks that need it are left out."""
    is_first, has_data = planned.name == next(iter(planned.recipe.stages)), planned.report is not None
    checks = [check for check in CHECKS if (is_first or not check.of_run) and (has_data or not check.needs_data)]
    return [replace(finding, check=check.name) for check in checks for finding in check.find(planned)]


def plan_warnings(planned: PlannedStage) -> list[Finding]:
    """The findings of `plan_findings` that are warnings, without those that are only good to know."""
    return [finding for finding in plan_findings(planned) if finding.severity != "info"]

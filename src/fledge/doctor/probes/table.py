"""The table of all probes, and running them within a time."""

import time
from collections.abc import Collection, Sequence
from pathlib import Path

from fledge.diagnosis.case import Figure
from fledge.doctor.probes import answers, leaks, losses, policy, preferences, updates, weights
from fledge.doctor.probes.context import ProbeContext
from fledge.doctor.probes.figures import DIALOGUES, Probe, ProbeReport
from fledge.doctor.probes.material import LAST, DirectoryMaterial, Material, RunMaterial
from fledge.errors import FledgeError, first_line

PREFERENCES = frozenset({"preference", "kto"})
COMPARED = PREFERENCES | {"reward"}
POLICIES = frozenset({"grpo"})

PROBES: tuple[Probe, ...] = (
    Probe(figures=("probe/files_damaged",), measure=weights.files_damaged),
    Probe(figures=("probe/head_tied",), measure=weights.head_tied),
    Probe(figures=("probe/adapter_b_norm",), measure=weights.adapter_b_norm),
    Probe(figures=("probe/embedding_rows_unused",), measure=weights.embedding_rows_unused),
    # the trainer's own code
    Probe(
        figures=("probe/reference_loss", "probe/reference_loss_expected", "probe/reference_margin"),
        measure=preferences.at_reference,
        kinds=PREFERENCES,
        needs_run=True,
    ),
    Probe(figures=("probe/reference_moved",), measure=preferences.reference_moved, kinds=PREFERENCES, needs_run=True),
    Probe(
        figures=("probe/preference_loss_slope", "probe/beta_effect"), measure=preferences.gains, kinds=COMPARED, needs_run=True
    ),
    Probe(figures=("probe/advantage_alignment",), measure=policy.advantage_alignment, kinds=POLICIES, needs_run=True),
    Probe(figures=("probe/shift_gradient",), measure=updates.shift, needs_run=True),
    Probe(figures=("probe/accumulation_ratio", "probe/accumulation_cosine"), measure=updates.accumulation, needs_run=True),
    Probe(
        figures=(
            "probe/unchanged_tensors",
            "probe/changed_frozen",
            "probe/missing_from_optimizer",
            "probe/restored_state",
            "probe/update_ratios",
        ),
        measure=updates.update,
        needs_run=True,
    ),
    Probe(figures=("probe/unmoved_tensors",), measure=weights.unmoved_tensors, needs_run=True),
    Probe(figures=("probe/evaluation_dropout",), measure=updates.evaluation_dropout, needs_run=True),
    Probe(figures=("probe/two_passes",), measure=leaks.two_passes),
    Probe(figures=("probe/future_leak",), measure=leaks.future_leak),
    Probe(figures=("probe/document_leak",), measure=leaks.document_leak, needs_run=True),
    Probe(figures=("probe/padding_leak",), measure=leaks.padding_leak, needs_run=True),
    # the checkpoint
    Probe(figures=("probe/expert_load", "probe/dead_experts"), measure=weights.experts),
    Probe(figures=("probe/loss_at_offsets",), measure=losses.loss_at_offsets),
    Probe(figures=("probe/prompt_loss", "probe/answer_loss"), measure=losses.prompt_and_answer, kinds=DIALOGUES),
    Probe(figures=("probe/training_loss",), measure=losses.training_loss),
    Probe(figures=("probe/end_probability",), measure=losses.end_probability, kinds=DIALOGUES),
    Probe(figures=("probe/answer_gain", "probe/answers_helped"), measure=losses.answer_gain, kinds=DIALOGUES),
    Probe(figures=("probe/validation_loss",), measure=losses.validation_loss),
    Probe(figures=("probe/logged_loss",), measure=losses.logged_loss, needs_run=True),
    Probe(
        figures=(
            "probe/ended",
            "probe/repetition",
            "probe/greedy_repetition",
            "probe/prompt_copy",
            "probe/equal_answers",
        ),
        measure=answers.sampled,
    ),
    Probe(figures=("probe/identity_answers",), measure=answers.identity, kinds=DIALOGUES),
    # the start model
    Probe(figures=("probe/base_loss_at_offsets",), measure=losses.base_loss_at_offsets),
    Probe(figures=("probe/base_prompt_loss", "probe/base_answer_loss"), measure=losses.base_prompt_and_answer, kinds=DIALOGUES),
    Probe(figures=("probe/base_answer_gain",), measure=losses.base_answer_gain, kinds=DIALOGUES),
    Probe(figures=("probe/base_text_loss", "probe/base_text_loss_before"), measure=losses.forgetting, needs_run=True),
    Probe(figures=("probe/base_ended", "probe/base_repetition", "probe/base_prompt_copy"), measure=answers.base_sampled),
)
"""All probes, in the order in which they run: silent faults of the trainer first, what takes long last."""


def probe_figures(
    run: Path,
    stage: str,
    *,
    checkpoint: str = LAST,
    only: Collection[str] | None = None,
    deadline_seconds: float = 60.0,
) -> dict[str, Figure]:
    """The figures of a checkpoint of a run's stage, by name; see `probe_run`, which also tells what was left out."""
    return probe_run(run, stage, checkpoint=checkpoint, only=only, deadline_seconds=deadline_seconds).figures


def probe_run(
    run: Path,
    stage: str,
    *,
    checkpoint: str = LAST,
    only: Collection[str] | None = None,
    deadline_seconds: float = 60.0,
) -> ProbeReport:
    """Probe a checkpoint of a run's stage. `checkpoint`: last, best, start (before the first update), or a number of updates; a
    stage that has none is probed at its start. `only`: names of figures; None: all. No probe begins after `deadline_seconds`.

    The run is not changed. Raises FledgeError if there is no such run, stage or checkpoint.
    """
    return run_probes(RunMaterial(Path(run), stage, checkpoint), only=only, deadline_seconds=deadline_seconds)


def probe_directory(
    model: Path,
    *,
    files: Sequence[Path] = (),
    tokenizer: Path | None = None,
    start: Path | None = None,
    kind: str | None = None,
    max_seq_len: int | None = None,
    only: Collection[str] | None = None,
    deadline_seconds: float = 60.0,
) -> ProbeReport:
    """Probe a model directory of any trainer; arguments as of `DirectoryMaterial` and `probe_run`. Raises FledgeError if
    `files` are not rows of a known kind."""
    material = DirectoryMaterial(model, files=files, tokenizer=tokenizer, start=start, kind=kind, max_seq_len=max_seq_len)
    return run_probes(material, only=only, deadline_seconds=deadline_seconds)


def run_probes(
    material: Material, *, only: Collection[str] | None = None, deadline_seconds: float = 60.0, probes: Sequence[Probe] = PROBES
) -> ProbeReport:
    """Run the probes that make sense for the kind of stage, one after another. A probe that fails, whatever the error of a
    faulty trainer may be, is left out with the reason."""
    report, started = ProbeReport(), time.monotonic()
    with ProbeContext(material=material).opened() as context:
        for probe in probes:
            wanted = [name for name in probe.figures if only is None or name in only]
            if not wanted or (probe.kinds is not None and material.kind not in probe.kinds):
                continue
            reason = _reason_not_to(probe, material, time.monotonic() - started, deadline_seconds)
            if reason is None:
                reason = _run(probe, context, wanted, report)
            for name in wanted:
                if name not in report.figures:
                    report.left_out[name] = reason or "the sample holds nothing to measure it on"
        report.step = _step_of(material)
    return report


def _reason_not_to(probe: Probe, material: Material, seconds: float, deadline: float) -> str | None:
    """Why a probe is not made; None: it is."""
    if probe.needs_run and not isinstance(material, RunMaterial):
        return "it needs a run of fledge, with its recipe"
    if seconds >= deadline:
        return f"there was no time for it within {deadline:g} seconds"
    return None


def _run(probe: Probe, context: ProbeContext, wanted: Sequence[str], report: ProbeReport) -> str | None:
    """Run one probe and add its figures to the report; returns the reason where it failed."""
    started = time.monotonic()
    try:
        found = probe.measure(context)
    except FledgeError as error:
        return error.what
    except Exception as error:  # of a trainer that may be broken: told, and the other probes go on
        return f"it failed with {type(error).__name__}: {first_line(error)}"
    finally:
        report.seconds[probe.figures[0]] = time.monotonic() - started
    report.figures |= {name: value for name, value in found.items() if value is not None and name in wanted}
    return None


def _step_of(material: Material) -> int | None:
    try:
        return material.step
    except FledgeError:
        return None

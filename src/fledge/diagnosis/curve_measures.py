"""The figures of logs and plans: what each one is, and the series of the log that it is computed from."""

from dataclasses import dataclass

from fledge.diagnosis.curves.answers import PREFERENCES, REWARDS, ROUTER

LOSS, EPOCH, EVAL, LR = "train/loss", "train/epoch", "eval/loss", "train/lr"
NORM, SCALE, SKIPPED = "train/grad_norm", "train/loss_scale", "train/skipped_steps"


@dataclass(frozen=True)
class CurveMeasure:
    """One figure of a log or a plan. `meaning`: what it is, with its unit. `series`: of the log, without which it is not
    computed; None: it comes from the settings."""

    meaning: str
    series: str | None


def _of(series: str | None, **meanings: str) -> dict[str, CurveMeasure]:
    return {f"curve/{name}": CurveMeasure(meaning, series) for name, meaning in meanings.items()}


def _plan(series: str | None, **meanings: str) -> dict[str, CurveMeasure]:
    return {f"plan/{name}": CurveMeasure(meaning, series) for name, meaning in meanings.items()}


CURVE_MEASURES: dict[str, CurveMeasure] = {
    **_of(
        LOSS,
        points="points of the training loss",
        last_step="last step with a training loss",
        loss_is_level="whether the level of the loss says something: it is not centred on 0",
        loss_not_finite="share of training losses that are no finite numbers",
        loss_not_finite_from="first such step",
        loss_not_finite_at_end="whether the last losses are such",
        loss_constant="the one value of all training losses",
        first_loss="first training loss",
        first_step="its step",
        head_loss="mean training loss of the first points",
        last_loss="mean training loss of the last points",
        lowest_loss="lowest running mean of the training loss",
        lowest_step="its step",
        loss_noise="standard deviation of single losses around their trend",
        level_error="standard error of the difference of two levels",
        rise="last − lowest level",
        rise_z="the same in standard errors",
        fall="first − lowest block of twenty",
        fall_z="the same in standard errors",
        late_fall="fall of the loss over the last half, by the median slope",
        late_z="statistic of Mann and Kendall of the last half; negative: it falls",
        plateau_from="share of the run from which on the loss stays at its last level",
        plateau_level="mean of the last fifth",
        swing="standard deviation of blocks around their trend",
        swing_expected="the same as single points predict it",
        spikes="jumps of the loss that last for several points",
        outliers="single points far above the others",
        largest_spike="the largest jump: step, size, level before, points until it came back",
        first_spike_step="step of the first jump",
        autocorrelation="correlation of the losses of neighbouring steps without the slow trend",
        autocorrelation_z="the same in standard errors",
        resumes="resumes that are seen in the log",
        resume_jump="the largest jump of the loss at a resume: step, size, level before, statistics",
    ),
    **_of(
        EPOCH,
        epochs_read="epochs that were read",
        borders="borders of epochs with enough points on both sides",
        border_steps="steps of the first borders",
        border_drop="fall of the loss at borders of epochs beyond that within them",
        border_drop_share="the same as a share of the level",
        border_z="the same in standard errors",
        epoch_rise="rise of the loss within epochs after the first",
        epoch_pattern="correlation of the bends of the loss in epochs that follow each other",
        epoch_pattern_z="the same in standard errors",
    ),
    **_of(
        EVAL,
        evaluations="evaluations with a loss",
        first_validation="first validation loss",
        first_validation_step="its step",
        last_validation="last validation loss",
        last_validation_step="its step",
        lowest_validation="lowest validation loss",
        lowest_validation_step="its step",
        lowest_validation_epoch="epochs read until then",
        validation_rise="last − lowest validation loss",
        validation_rise_evaluations="evaluations after the lowest one",
        validation_jitter="standard deviation of single evaluations around their trend",
        validation_turns="share of evaluations at which the direction turns",
        first_gap="first validation loss − training loss around it",
        last_gap="last validation loss − training loss around it",
        training_fall_late="fall of the training loss over the later half of the evaluations",
        validation_fall_late="fall of the validation loss over the same",
        training_at_last_validation="training loss around the last evaluation",
        validation_ratio="median of validation loss ÷ training loss",
        validation_ratios="smallest and largest of these",
        gaps_below_zero="share of evaluations with a loss below that of training",
        gaps="evaluations that have a training loss around them",
    ),
    **_of(
        LR,
        lr_points="points of the learning rate",
        peak_lr="largest learning rate",
        last_lr="last learning rate",
        lr_zero_share="share of steps with the rate 0",
        lr_is_constant="whether the rate is the same at all steps",
        first_lr_share="first rate ÷ peak",
        first_lr_step="step of the first rate",
        warmup_steps="step at which the peak is reached",
        last_lr_share="last rate ÷ peak",
        lr_flat_from_step="step from which on the rate is that of the end",
        lr_late_fall="fall of the rate over the last half, as a share of the peak",
        lr_restart_step="step at which the rate rises again threefold after its fall",
        mean_lr="mean learning rate over the steps",
    ),
    **_of(
        NORM,
        grad_norm_not_finite="share of gradient norms that are no finite numbers",
        grad_norm_not_finite_from="first such step",
        grad_norm_not_finite_at_end="whether the last norms are such",
        grad_norm="median gradient norm of the last half",
        grad_norm_max="largest gradient norm",
        grad_norm_zero_share="share of steps with the norm 0",
        early_grad_peak="largest norm of the first hundred steps ÷ the usual one",
        grad_norm_growth="norm of the last tenth ÷ that of the lowest tenth",
        grad_norm_shrinkage="norm of the last tenth ÷ that of the first",
        clipped_share="share of updates that are clipped",
        clip_factor="median norm ÷ threshold of clipping",
    ),
    **_of(
        SCALE,
        first_loss_scale="first loss scale",
        last_loss_scale="last loss scale",
        lowest_loss_scale="lowest loss scale",
    ),
    **_of(SKIPPED, skipped_share="share of steps that were skipped", late_skipped_share="the same in the last half"),
    **_of(
        "update_ratio/attention",
        update_ratio="by group: usual RMS of an update ÷ RMS of the weights",
        first_update="by group: the largest of the first ten updates ÷ RMS of the weights",
        update_at_peak="by group: what the first update would have been at the peak of the rate",
        update_total="by group: sum of these over all updates",
    ),
    **_of(
        "grad_noise/scale",
        noise_scale="gradient noise scale, in tokens or pairs",
        noise_scale_points="single values that it is the median of",
    ),
    **_of(
        "system/step_seconds",
        step_seconds="usual seconds of an update",
        slow_down="seconds of the last updates ÷ those of the first, of each the fast end",
        slow_trend="statistic of Mann and Kendall of the seconds; positive: they grow",
    ),
    **_of("system/phases/data", data_share="share of the time that is spent waiting for batches"),
    **_of(
        "system/memory_bytes",
        memory_bytes="memory at the end",
        memory_growth="growth of memory after the first fifth of the run, bytes",
        memory_growth_share="the same as a share",
        memory_is_steady="correlation of memory with the step",
    ),
    **_of(
        None,
        crash="the last line that tells of a crash",
        crash_before_records="the same, with a few records of the training loss behind it",
    ),
    **_of("train/rewards/margins", loss_at_ln2="share of preference losses that are ln 2"),
    **_plan(
        None,
        steps="updates of the whole stage",
        progress="last step ÷ planned steps",
        is_done="whether the stage is over",
        is_fresh="whether it began with fresh weights",
        epochs="epochs, planned or read",
        updates_per_epoch="updates of an epoch",
        batch_tokens="tokens of an update",
        width="hidden size, known or told from the number of parameters",
        has_adapter="whether an adapter is trained",
        log_vocabulary="loss of a uniform guess: ln(vocabulary), nats/token",
        tokens_per_parameter="training tokens ÷ parameters, from fresh weights",
        batch_low="low end of the band of tokens of an update",
        batch_high="high end",
        batch_source="where that band comes from",
        batch_factor="how many times the batch is above (below 1: below) its band",
    ),
    **_plan(
        LOSS,
        first_loss_share="first loss ÷ that of a uniform guess",
        last_loss_share="last loss ÷ that of a uniform guess",
        over_unigram="last loss − unigram entropy of the targets",
        over_bigram="last loss − bigram entropy of the targets",
    ),
    **_plan(
        LR,
        peak_lr="peak of the learning rate, seen or set",
        summed_rates="sum of the rates of all steps up to now",
        rate_low="low end of the band of learning rates",
        rate_high="high end",
        rate_middle="the rate that fledge would choose",
        rate_source="where that band comes from",
        rate_is_own="whether the band was made for a run of this kind and size",
        rate_factor="how many times the rate is above (below 1: below) its band",
        peak_ratio="peak of the column ÷ the learning rate that was set",
        lr_off_share="share of steps whose rate is far from the planned one",
    ),
    **_plan("grad_noise/scale", batch_per_noise_scale="batch ÷ gradient noise scale"),
}
"""All figures that `curve_figures` and `plan_figures` give, but for first, last and error of the series of answers."""

ENDS = ("first_", "last_")


def series_needed(name: str) -> str | None:
    """The series of the log that a figure is computed from; None for figures of settings, of data and of probes, and others."""
    if name in CURVE_MEASURES:
        return CURVE_MEASURES[name].series
    short = name.removeprefix("curve/").removesuffix("_error")
    for start in ENDS:
        short = short.removeprefix(start)
    return {**PREFERENCES, **REWARDS, **ROUTER}.get(short)

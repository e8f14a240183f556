"""Probes of losses, by the doctor's own code on the logits: at offsets, of prompts and answers, behind other prompts, on both
splits, as they were logged, and on the text of an earlier stage."""

from collections.abc import Mapping, Sequence

import numpy as np

from fledge.data import FORMATS, PackedDataset
from fledge.diagnosis.case import Figure
from fledge.doctor.probes.context import ProbeContext
from fledge.doctor.probes.figures import figure, left_out
from fledge.doctor.probes.rows import OFFSETS, Reading, Row
from fledge.model.protocol import LanguageModel
from fledge.objective import CausalLMObjective
from fledge.run.events import read_events
from fledge.run.text_files import read_json

LEAST_SWAPPED, SWAPPED_ROWS = 4, 32  # rows whose answers are read behind another prompt
MOST_LOGGED_TOKENS = 60_000  # of an evaluation that is read again
EARLIER_ROWS = 32  # of the text of an earlier stage


def mean(parts: Sequence[np.ndarray]) -> float | None:
    """The mean of all numbers of some arrays; None without one."""
    values = np.concatenate(parts) if parts else np.zeros(0)
    return float(values.astype(np.float64).mean()) if len(values) else None


def _of(parts: Sequence[np.ndarray], what: str) -> Figure | None:
    """The mean as a figure that says how many tokens it is of."""
    value = mean(parts)
    return None if value is None else figure(value, f"mean of {sum(map(len, parts)):,} {what}")


# -- offsets, prompts, answers --------------------------------------------------------------------------------------------


def at_offsets(rows: Sequence[Row], readings: Sequence[Reading]) -> list[float] | None:
    """The mean losses of the tokens 0, 1 and 2 places on, at the same places: those that predict a target with weight and have
    two tokens behind them. Where no token has weight: at all places."""
    parts = []
    for row, reading in zip(rows, readings, strict=True):
        places = len(row.tokens) - OFFSETS + 1
        if places > 0:
            chosen = row.supervised[1 : places + 1]
            parts.append((reading.losses[:, :places], chosen))
    if not any(chosen.any() for _, chosen in parts):
        parts = [(losses, np.ones_like(chosen)) for losses, chosen in parts]
    if not parts:
        return None
    return [float(np.concatenate([losses[offset][chosen] for losses, chosen in parts]).mean()) for offset in range(OFFSETS)]


def loss_at_offsets(context: ProbeContext) -> Mapping[str, Figure | None]:
    """The losses 0, 1 and 2 places on."""
    values = at_offsets(context.train_rows, context.readings("model"))
    return {"probe/loss_at_offsets": None if values is None else figure(values, f"of {len(context.train_rows)} training rows")}


def base_loss_at_offsets(context: ProbeContext) -> Mapping[str, Figure | None]:
    """The same under the start model."""
    values = at_offsets(context.train_rows, context.readings("start"))
    return {"probe/base_loss_at_offsets": None if values is None else figure(values)}


def _by_role(context: ProbeContext, of: str) -> tuple[Figure | None, Figure | None]:
    """The losses of the tokens of prompts and of answers under a model."""
    pairs = list(zip(context.train_rows, context.readings(of), strict=True))
    prompts = [reading.of_targets(~row.in_answers) for row, reading in pairs]
    answers = [reading.of_targets(row.in_answers) for row, reading in pairs]
    return _of(prompts, "tokens of prompts"), _of(answers, "tokens of answers")


def prompt_and_answer(context: ProbeContext) -> Mapping[str, Figure | None]:
    """The losses of prompts and answers."""
    prompts, answers = _by_role(context, "model")
    prompts = None if context.model.decoder_start is not None else prompts  # no token of a source is predicted
    return {"probe/prompt_loss": prompts, "probe/answer_loss": answers}


def base_prompt_and_answer(context: ProbeContext) -> Mapping[str, Figure | None]:
    """The same under the start model."""
    prompts, answers = _by_role(context, "start")
    prompts = None if context.start.decoder_start is not None else prompts
    return {"probe/base_prompt_loss": prompts, "probe/base_answer_loss": answers}


def end_probability(context: ProbeContext) -> Mapping[str, Figure | None]:
    """The probability that a text ends where the answers of the data end: before their end token, or, where that is missing,
    behind their last one."""
    found = []
    for row, reading in zip(context.train_rows, context.readings("model"), strict=True):
        for (_, stop), ended in zip(row.answers, row.ended, strict=True):
            was_cut = not ended and stop >= context.maker.longest
            if not was_cut and stop >= 2:
                found.append(float(reading.ends[stop - 2 if ended else stop - 1]))
    if not found:
        raise left_out("no row of the sample holds the end of an answer")
    return {"probe/end_probability": figure(float(np.mean(found)), f"mean over the ends of {len(found)} answers")}


# -- other prompts --------------------------------------------------------------------------------------------------------


def swapped(rows: Sequence[Row], longest: int) -> list[tuple[Row, Row, int]]:
    """(row, row with the prompt of another one before its last answer, tokens of that answer). Rows whose prompt or answer
    equals the other's are passed over, and what would be too long."""
    found = []
    usable = [row for row in rows if row.answers and row.answers[-1][0] > 1]
    for number, row in enumerate(usable):
        start, stop = row.answers[-1]
        answer = row.tokens[start:stop]
        for step in range(1, min(4, len(usable))):
            other = usable[(number + step) % len(usable)]
            other_start, other_stop = other.answers[-1]
            prompt = other.tokens[:other_start]
            same = np.array_equal(prompt, row.tokens[:start]) or np.array_equal(other.tokens[other_start:other_stop], answer)
            if not same and len(prompt) + len(answer) <= longest:
                tokens = np.concatenate((prompt, answer))
                own = Row(row.tokens[:stop], row.weights[:stop])
                found.append((own, Row(tokens, np.ones(len(tokens), np.float32)), len(answer)))
                break
    return found


def gains_of_prompts(context: ProbeContext, model: LanguageModel) -> tuple[Figure, Figure]:
    """How much lower the loss of answers is behind their own prompts than behind those of others, and the share of answers that
    are likelier there."""
    rows = context.train_rows[:: max(1, -(-len(context.train_rows) // SWAPPED_ROWS))]
    triples = swapped(rows, context.maker.longest)
    if len(triples) < LEAST_SWAPPED:
        raise left_out("too few rows of the sample have different prompts and different answers")
    own = context.read(model, [one for one, _, _ in triples])
    other = context.read(model, [one for _, one, _ in triples])
    before = [reading.losses[1][-1 - size : -1] for reading, (_, _, size) in zip(own, triples, strict=True)]
    after = [reading.losses[1][-1 - size : -1] for reading, (_, _, size) in zip(other, triples, strict=True)]
    gains = np.array([float(b.mean() - a.mean()) for a, b in zip(before, after, strict=True)])
    spread = float(gains.std(ddof=1) / len(gains) ** 0.5)
    value = float((np.concatenate(after) - np.concatenate(before)).mean())
    note = f"of {len(gains)} answers; standard error of their means {spread:.3f}"
    return figure(value, note), figure(float((gains > 0).mean()), f"of {len(gains)} answers")


def answer_gain(context: ProbeContext) -> Mapping[str, Figure | None]:
    """The gain by the right prompts."""
    gain, helped = gains_of_prompts(context, context.model)
    return {"probe/answer_gain": gain, "probe/answers_helped": helped}


def base_answer_gain(context: ProbeContext) -> Mapping[str, Figure | None]:
    """The same under the start model."""
    return {"probe/base_answer_gain": gains_of_prompts(context, context.start)[0]}


# -- splits ---------------------------------------------------------------------------------------------------------------


def supervised_loss(rows: Sequence[Row], readings: Sequence[Reading]) -> Figure | None:
    """The mean loss of the targets with weight, each by its weight."""
    parts = [reading.of_targets(row.supervised) for row, reading in zip(rows, readings, strict=True)]
    weights = np.concatenate([row.weights[1:][row.supervised[1:]] for row in rows])
    if not len(weights):
        return None
    losses = np.concatenate(parts).astype(np.float64)
    return figure(float((losses * weights).sum() / weights.sum()), f"mean of {len(losses):,} targets")


def training_loss(context: ProbeContext) -> Mapping[str, Figure | None]:
    """The loss on training rows."""
    return {"probe/training_loss": supervised_loss(context.train_rows, context.readings("model"))}


def validation_loss(context: ProbeContext) -> Mapping[str, Figure | None]:
    """The loss on validation rows."""
    readings = context.readings("model", "validation")
    return {"probe/validation_loss": supervised_loss(context.validation_rows, readings)}


# -- what was logged --------------------------------------------------------------------------------------------------------


def logged_loss(context: ProbeContext) -> Mapping[str, Figure | None]:
    """The loss of the evaluation at the checkpoint, on the same packed rows, by the doctor's own code, minus the logged one."""
    run, data = context.run, context.material.validation
    if data is None:
        raise left_out("there is no validation data")
    if not isinstance(context.trainer.objective, CausalLMObjective):
        raise left_out("the logged loss of this stage is no mean loss of tokens")
    logged = _logged(context)
    if logged is None:
        raise left_out("no evaluation was logged at the step of the checkpoint")
    rows = pieces(data, run.stage.evaluation.max_packed_rows)
    tokens = sum(len(row.tokens) for row in rows)
    if tokens > MOST_LOGGED_TOKENS or len(context.affordable(rows)) < len(rows):
        raise left_out(f"the evaluation reads {tokens:,} tokens, too many to read again here")
    model = run.load_averaged().eval()
    own = supervised_loss(rows, context.read(model, rows))
    if own is None:
        raise left_out("the validation rows have no target")
    note = f"{own.value:.4f} by the doctor's own code, {logged:.4f} logged after {run.step:,} updates"
    return {"probe/logged_loss": figure(own.value - logged, note)}


def _logged(context: ProbeContext) -> float | None:
    """The validation loss that was logged at the step of the checkpoint; None: there is none."""
    run = context.run
    if run.is_start:
        file = run.directory.evaluations / "before.json"
        value = read_json(file, dict[str, object]).get("loss") if file.exists() else None
        return value if isinstance(value, float) else None
    found = None
    for event in read_events(run.directory.events):
        if event["kind"] == "eval" and event["step"] == run.step and isinstance(event.get("eval/loss"), float):
            found = event["eval/loss"]
    return found


def pieces(data: PackedDataset, most_rows: int) -> list[Row]:
    """The pieces of sequences in the first packed rows, each as a row: its tokens and the weights of its targets."""
    layout, found = data.layout, []
    for slot in range(int(layout.offsets[min(most_rows, len(layout))])):
        if int(layout.branches[slot]):
            raise left_out("the evaluation shares the prompts of its answers")
        sequence, start, length = (int(values[slot]) for values in (layout.sequence, layout.start, layout.length))
        tokens, weights = data.examples.sequence(sequence)
        span = slice(start, start + length + 1)
        found.append(Row(np.asarray(tokens[span], np.int64), np.array(weights[span], np.float32)))
    return found


# -- forgetting -------------------------------------------------------------------------------------------------------------


def forgetting(context: ProbeContext) -> Mapping[str, Figure | None]:
    """The loss on the text of the first stage of the run, before this one, under the model and under the start model."""
    run = context.run
    earlier = run.recipe.stages_before(run.name)
    if not earlier:
        raise left_out("the run has no stage before this one")
    name = earlier[0]
    data = run.data_of(name)
    split = data.validation or data.train
    maker = context.maker_for(split, has_answers=FORMATS[run.recipe.stages[name].kind].is_dialogue)
    rows = context.affordable(maker.rows(split.examples, EARLIER_ROWS))
    now, before = (supervised_loss(rows, context.read(model, rows)) for model in (context.model, context.start))
    if now is None or before is None:
        raise left_out(f"the data of the stage '{name}' has no target")
    return {
        "probe/base_text_loss": figure(now.value, f"data of the stage '{name}', {now.note}"),
        "probe/base_text_loss_before": figure(before.value, f"data of the stage '{name}', {before.note}"),
    }

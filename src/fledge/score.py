"""`fledge score`: models answer the questions of a file, and their answers are compared with the file's own."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from fledge.errors import FledgeError
from fledge.escaping import escaped_json
from fledge.evaluate.answers import RIGHT, AnsweredRow, Mark, mark, score_answers
from fledge.evaluate.best_of import BestOf
from fledge.evaluate.bleu import corpus_bleu, import_sacrebleu
from fledge.evaluate.intervals import paired_difference, wilson_interval
from fledge.evaluate.metrics import (
    Answer,
    check_metrics,
    measure_answers,
    measure_set,
    needs_gain,
    needs_sacrebleu,
    with_gains,
)
from fledge.evaluate.sets.questions import ScoredQuestion, read_questions
from fledge.generation import SamplingParams, SwitchableEngine, find_adapters, load_engine
from fledge.generation.json_schema import JsonSchema
from fledge.metric_names import METRIC_NAMES, SHARE
from fledge.model.adapter_switch import NO_ADAPTER
from fledge.model.locate import locate_model
from fledge.recipe import Source
from fledge.run import Log, write_text
from fledge.run.terminal import Terminal, output_terminal
from fledge.tokenizer import Tokenizer


def score(
    file: str,
    models: Sequence[str],
    max_new_tokens: int,
    *,
    adapters: Sequence[str] = (),
    schema: dict[str, Any] | None = None,
    best_of: BestOf | None = None,
    errors: str | None = None,
    as_json: bool = False,
    bleu: bool = False,
    metrics: Sequence[str] = (),
    log: Log,
) -> None:
    """Print the scores of each model on the questions of a file, with `bleu` BLEU-4 too, and with `metrics` these of
    `evaluate.metrics`; write wrong answers to `errors`, one JSON object a line. With `adapters`, the scores of the one model
    with each of them (`none`: alone).

    `schema`: answers follow this JSON schema. `best_of`: answers are drawn; the scores are those of one draw, and of the one
    that a reward model chooses of several. Raises FledgeError for a file without a usable row, for a question that leaves a
    model no room for an answer, for a name that is no metric, and for BLEU and chrF without sacrebleu.
    """
    _check(models, bleu, metrics)
    found = find_adapters([one for one in adapters if one != NO_ADAPTER])
    questions, problems = read_questions(Source(path=file), file)
    for problem in problems:
        log(f"not scored: {problem}")
    results: dict[str, dict[str, Any]] = {}
    exact: dict[str, np.ndarray] = {}
    wrong: list[str] = []
    params = SamplingParams(max_new_tokens=max_new_tokens) if best_of is None else best_of.params
    answers = (
        (loaded, *answered)
        for name, loaded in _loaded_models(models, adapters, found, log)
        for answered in _answers(name, loaded, questions, _following(params, schema, loaded.tokenizer), best_of)
    )
    for loaded, model, rows, compared, more in answers:
        marks = [mark(row) for row in rows]
        exact[model] = np.array([one.kind == RIGHT for one in marks])
        results[model] = {**score_answers(rows, marks), **more, **_difference(exact, model, compared or next(iter(exact)))}
        if bleu:
            results[model]["bleu"] = corpus_bleu([row.given for row in rows], [row.expected for row in rows]).as_dict()
        if metrics:
            results[model]["metrics"] = measured_metrics(loaded, questions, rows, metrics)
        wrong += _error_lines(model, rows, marks)
    if errors is not None:
        write_text(Path(errors), "".join(wrong))
    if not as_json:
        return _print(results, errors, len(wrong))
    print(escaped_json(json.dumps({"file": file, "models": results}, ensure_ascii=False, indent=1)))


def _check(models: Sequence[str], bleu: bool, metrics: Sequence[str]) -> None:
    """Raise FledgeError for a model that is named twice, a name that is no metric, and a library that is not installed."""
    check_metrics(metrics, "--metrics")
    if bleu or needs_sacrebleu(metrics):
        import_sacrebleu("--bleu" if bleu else "--metrics")
    if len(set(models)) != len(models):
        raise FledgeError("a model is named twice", where=", ".join(models))


def _difference(exact: Mapping[str, np.ndarray], model: str, to: str) -> dict[str, Any]:
    """How much better the answers of one model are than those of another; nothing if it is the same one."""
    if model == to:
        return {}
    mean, interval = paired_difference(exact[to], exact[model])
    return {"exact_match_difference": {"to": to, "value": mean, "interval": interval}}


def _loaded_models(
    models: Sequence[str], adapters: Sequence[str], found: Mapping[str, Path], log: Log
) -> Iterator[tuple[str, SwitchableEngine]]:
    """The models one after another, each loaded when it is needed; with adapters, the one model with each of them, in their
    order. The names are those of the scores."""
    folders = [locate_model(model, log) for model in models]  # all of them before the first one is asked
    if not adapters:
        for model, folder in zip(models, folders, strict=True):
            yield model, load_engine(folder, log)
        return
    if len(models) > 1:
        raise FledgeError("adapters belong to one model", where="--adapter", hint="name one model and its adapters")
    loaded, names = load_engine(folders[0], log, adapters=found), iter(found)
    for location in adapters:
        name = None if location == NO_ADAPTER else next(names)
        loaded.set_adapter(name)
        yield f"{models[0]} with {name or 'no adapter'}", loaded


def _following(params: SamplingParams, schema: dict[str, Any] | None, tokenizer: Tokenizer) -> SamplingParams:
    """The parameters, with the JSON schema for this tokenizer if there is one."""
    return params if schema is None else replace(params, json_schema=JsonSchema(schema, tokenizer))


def _answers(
    name: str,
    loaded: SwitchableEngine,
    questions: Sequence[ScoredQuestion],
    params: SamplingParams,
    best_of: BestOf | None,
) -> Iterator[tuple[str, list[AnsweredRow], str | None, dict[str, Any]]]:
    """The answers of a model, with what they are called, the name of those that they are compared with (None: the first ones of
    all), and further scores: the greedy ones, or one draw and the best of several."""
    if best_of is None:
        yield name, answer(loaded, questions, params), None, {}
        return
    prompts = [(question.conversation.messages[:-1], question.conversation.tools) for question in questions]
    names = [question.where for question in questions]
    ranked = best_of.answer(loaded.engine, loaded.tokenizer, prompts, names, params)
    drawn = [
        [question.answered(*one) for one in zip(answers.texts, answers.finish_reasons, strict=True)]
        for question, answers in zip(questions, ranked, strict=True)
    ]
    right = sum(any(mark(one).kind == RIGHT for one in rows) for rows in drawn)
    draws = len(drawn) * best_of.count
    more = {
        "any_right": {"value": right / len(drawn), "interval": wilson_interval(right, len(drawn))},
        "cut_draws": {"value": sum(one.cut for one in ranked) / draws, "draws": draws},
        "too_long_draws": sum(one.too_long for one in ranked),
    }
    one_sample = f"{name}, one sample"
    yield one_sample, [rows[0] for rows in drawn], None, {}
    best = [rows[answers.best] for rows, answers in zip(drawn, ranked, strict=True)]
    yield f"{name}, best of {best_of.count}", best, one_sample, more


def answer(loaded: SwitchableEngine, questions: Sequence[ScoredQuestion], params: SamplingParams) -> list[AnsweredRow]:
    """Answers of a model to all questions."""
    engine, tokenizer = loaded.engine, loaded.tokenizer
    prompts = [question.prompt(tokenizer) for question in questions]
    names = [question.where for question in questions]
    completions = engine.generate(prompts, params, where=names)
    return [
        question.answered(tokenizer.decode(completion.tokens, skip_special=True), completion.finish_reason)
        for question, completion in zip(questions, completions, strict=True)
    ]


def measured_metrics(
    loaded: SwitchableEngine, questions: Sequence[ScoredQuestion], rows: Sequence[AnsweredRow], metrics: Sequence[str]
) -> dict[str, Any]:
    """The values of metrics of a model's answers, with their 95 % intervals, the number of answers that they are of, and how
    they are computed, as JSON values."""
    given = [
        Answer(prompt=row.question, given=row.given, expected=row.expected, finish_reason=row.finish_reason) for row in rows
    ]
    if needs_gain(metrics):
        tokenizer = loaded.tokenizer
        prompts, answers = [one.prompt(tokenizer) for one in questions], [tokenizer.encode(row.given) for row in rows]
        given = with_gains(given, loaded.engine.model, tokenizer, prompts, answers)
    found = measure_set(metrics, given, measure_answers(metrics, given))
    return {name: asdict(value) for name, value in found.items()}


def _error_lines(model: str, rows: Sequence[AnsweredRow], marks: Sequence[Mark]) -> Iterator[str]:
    """The wrong answers of a model, those of one kind together."""
    pairs = [(row, one) for row, one in zip(rows, marks, strict=True) if one.kind != RIGHT]
    frequent = Counter(one.kind for _, one in pairs)
    for row, one in sorted(pairs, key=lambda pair: (-frequent[pair[1].kind], pair[1].kind)):
        line = {
            "model": model,
            "kind": one.kind,
            "where": row.where,
            "group": row.group,
            "question": row.question,
            "expected": row.expected,
            "given": row.given,
            "details": list(one.details),
        }
        yield json.dumps(line, ensure_ascii=False) + "\n"


def _print(results: dict[str, dict[str, Any]], errors: str | None, wrong: int) -> None:
    terminal = output_terminal()
    for model, result in results.items():
        terminal.print(Text(f"\n{model}", style="bold"), soft_wrap=True)
        terminal.print(_table(result))
        if "exact_match_difference" in result:
            difference = result["exact_match_difference"]
            low, high = difference["interval"]
            text = f"exact match − that of {difference['to']}: {difference['value']:+.1%} [{low:+.1%}, {high:+.1%}]"
            terminal.print(Text(text), soft_wrap=True)
        if "any_right" in result:
            low, high = result["any_right"]["interval"]
            text = f"some answer of all that were drawn is right: {result['any_right']['value']:.1%} [{low:.1%}, {high:.1%}]"
            terminal.print(Text(text), soft_wrap=True)
            _print_draws(terminal, result)
        if "bleu" in result:
            text = f"BLEU-4: {result['bleu']['value']:.2f} of 100 ({result['bleu']['signature']})"
            terminal.print(Text(text), soft_wrap=True)
        for name, one in result.get("metrics", {}).items():
            terminal.print(Text(metric_line(name, one)), soft_wrap=True)
        for title, key in (("mistakes", "mistakes"), ("wrong names", "confused")):
            if result[key]:
                most = list(result[key].items())[:8]
                terminal.print(Text(f"{title}: " + ", ".join(f"{count:,} × {name}" for name, count in most)), soft_wrap=True)
    if errors is not None:
        terminal.print(Text(f"\nwrong answers: {errors} ({wrong:,})"), soft_wrap=True)


def metric_line(name: str, one: Mapping[str, Any]) -> str:
    """A metric as a line of the console: its name, its value with unit and interval, of how many answers, and its signature."""
    facts = METRIC_NAMES[name]
    unit = "" if facts.unit in ("", SHARE) else f" {facts.unit}"
    interval = "" if one["interval"] is None else f" [{', '.join(facts.format.format(end) for end in one['interval'])}]"
    signature = "" if one["signature"] is None else f" ({one['signature']})"
    return f"{facts.label}: {facts.format.format(one['value'])}{interval}{unit}, {one['count']:,} answers{signature}"


def _print_draws(terminal: Terminal, result: Mapping[str, Any]) -> None:
    """Say how many of the answers that were drawn did not end, and how many the reward model could not read."""
    cut, draws, too_long = result["cut_draws"]["value"], result["cut_draws"]["draws"], result["too_long_draws"]
    text = f"{cut:.1%} of {draws:,} draws were cut before their end; these are chosen only where no other is left"
    terminal.print(Text(text), soft_wrap=True)
    if too_long:
        text = f"{too_long:,} of {draws:,} draws are too long for the reward model, and are not chosen"
        terminal.print(Text(text), soft_wrap=True)


COLUMNS = {"exact_match": "exact match", "valid_json": "valid JSON", "precision": "precision", "recall": "recall", "f1": "F1"}


def _table(result: dict[str, Any]) -> Table:
    """A row for all answers, for each group, for held-out keys and for each field; 95 % intervals in brackets."""
    lines = {"all": result}
    lines |= {f"group {name}": scores for name, scores in result.get("groups", {}).items()}
    if "held_out_fields" in result:
        lines["held-out fields"] = result["held_out_fields"]
    lines |= {f"field {name}": scores for name, scores in result.get("fields", {}).items()}
    shown = [key for key in COLUMNS if any(key in scores for scores in lines.values())]
    table = Table(header_style="bold", box=None, pad_edge=False)
    for title in ("", "rows", *(COLUMNS[key] for key in shown)):
        table.add_column(Text(title), justify="right" if title else "left", no_wrap=True)
    for name, scores in lines.items():
        cells = [_cell(scores.get(key)) for key in shown]
        table.add_row(Text(name), f"{scores['rows']:,}" if "rows" in scores else "", *cells)
    return table


def _cell(score: dict[str, Any] | None) -> str:
    if score is None:
        return ""
    low, high = score["interval"]
    return f"{score['value']:.1%} [{low:.1%}, {high:.1%}]"

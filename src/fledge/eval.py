"""`fledge eval`: models are asked evaluation sets, and compared item by item."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from fledge.errors import FledgeError, first_line
from fledge.escaping import escaped_json
from fledge.evaluate.comparison import SetComparison, compare_sets, describe
from fledge.evaluate.records import MetricValue, SetResult, write_set_result
from fledge.evaluate.sets import EvaluatedModel, EvaluationSet, guess_kind, load_set
from fledge.evaluate.sets.in_stage import evaluate_with_progress, metric_text
from fledge.generation.loading import load_model_and_tokenizer, tokenizer_directory
from fledge.model.adapter_files import is_adapter
from fledge.model.loading import base_directory
from fledge.model.locate import locate_model
from fledge.recipe.sections.base import check_name
from fledge.recipe.sections.evaluation_sets import SET_KINDS, EvaluationSetConfig
from fledge.recipe.yaml_source import compose_yaml, read_yaml_text
from fledge.run import Console, nan_to_none
from fledge.run.terminal import Verbatim, output_terminal
from fledge.tokenizer import load_tokenizer

WHAT = "file of evaluation sets or prompts"
MAX_BYTES = 2**24  # of it
COMPARED = 4  # metrics of a set whose difference is said in a sentence
Results = dict[str, dict[str, SetResult]]
"""Set → model → result."""


@dataclass(frozen=True)
class NamedSet:
    """A set of the command line: its name, its settings, and what an error calls it."""

    name: str
    config: EvaluationSetConfig
    where: str


def evaluate_models(
    models: Sequence[str],
    sets: Sequence[str],
    *,
    max_samples: int | None = None,
    out: Path | None = None,
    as_json: bool = False,
    console: Console,
) -> None:
    """Ask each model all sets, print metrics with intervals and differences to the first model, and write the results to
    `out/<model>/`. `sets`: as `named_sets` reads them. `max_samples`: of each set, at most, whatever its settings say.

    Raises FledgeError for a model or a set that cannot be read, and for an item that leaves a model no room for an answer.
    """
    if len(set(models)) != len(models):
        raise FledgeError("a model is named twice", where=", ".join(models))
    loaded = [_loaded(one, max_samples, console) for one in named_sets(sets)]
    folders = [locate_model(model, console.log) for model in models]  # all of them before the first one is asked
    results: Results = {one.name: {} for one in loaded}
    for folder in folders[1:]:
        _check_cheaply(folder, loaded)
    for model, folder, name in zip(models, folders, folder_names(models), strict=True):
        for result in _asked(folder, loaded, None if out is None else out / name, console):
            results[result.name][model] = result
    compared = {name: _compared(of_models, models[0]) for name, of_models in results.items()}
    if as_json:
        print(escaped_json(json.dumps(_as_json(results, compared), ensure_ascii=False, indent=1)))
    else:
        _print(results, compared, out)


def _check_cheaply(folder: Path, sets: Sequence[EvaluationSet]) -> None:
    """Check the items of sets with the tokenizer and the configuration of a model whose weights are loaded later."""
    tokenizer = load_tokenizer(tokenizer_directory(folder), needs_template=False)
    base = base_directory(folder) if is_adapter(folder) else folder
    try:
        positions = json.loads((base / "config.json").read_text(encoding="utf-8")).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):  # loading the model says what is wrong
        positions = None
    for one in sets:
        one.check(tokenizer, positions if isinstance(positions, int) else sys.maxsize)


def _asked(folder: Path, sets: Sequence[EvaluationSet], out: Path | None, console: Console) -> list[SetResult]:
    """The results of a model, each written when it is there. The model is gone when the next one is loaded."""
    asked = EvaluatedModel(*load_model_and_tokenizer(folder, console.log))
    for one in sets:
        one.check(asked.tokenizer, asked.model.max_positions)
    results = []
    for one in sets:
        results.append(evaluate_with_progress(one, asked, console))
        if out is not None:
            write_set_result(out, results[-1])
    return results


def _loaded(named: NamedSet, max_samples: int | None, console: Console) -> EvaluationSet:
    config = named.config if max_samples is None else named.config.model_copy(update={"max_samples": max_samples})
    found = load_set(named.name, config, named.where)
    for note in found.notes:
        console.log(f"{named.name}: {note}")
    return found


def _compared(results: Mapping[str, SetResult], first: str) -> dict[str, SetComparison]:
    """The differences of the other models to the first one."""
    return {model: compare_sets(results[first], result) for model, result in results.items() if model != first}


# -- what is asked -----------------------------------------------------------------------------------------------------------


def named_sets(texts: Sequence[str]) -> list[NamedSet]:
    """The sets of a command line. Each text is a file or folder of items, whose kind is guessed; `KIND=PATH`; `lm_eval=TASK`;
    or a YAML file that maps names to settings as in `evaluation.sets` of a recipe. Equal names get numbers.

    Raises FledgeError for a file that is missing or has other contents."""
    found = [one for text in texts for one in _sets_of(text)]
    taken, named = {one.name for one in found}, dict[str, NamedSet]()
    for one in found:
        free = (f"{one.name}-{number}" for number in count(2) if f"{one.name}-{number}" not in taken)
        name = one.name if one.name not in named else next(free)
        taken.add(name)
        named[name] = NamedSet(name, one.config, one.where)
    return list(named.values())


def _sets_of(text: str) -> list[NamedSet]:
    where, (kind, equals, value) = f"--set {text}", text.partition("=")
    if equals and kind in SET_KINDS:
        key = "task" if kind == "lm_eval" else "path"
        return [NamedSet(_name_of(value), _config({"kind": kind, key: value}, where), where)]
    if Path(text).suffix.lower() in (".yaml", ".yml"):
        return _sets_of_yaml(text, where)
    config = _config({"kind": guess_kind(text, where), "path": text}, where)
    return [NamedSet(_name_of(text), config, where)]


def _sets_of_yaml(file: str, where: str) -> list[NamedSet]:
    """The sets that a file describes, or the one set of a file of prompts."""
    content = read_yaml_text(file, WHAT, MAX_BYTES)
    node = compose_yaml(content, file, WHAT)
    if isinstance(node, yaml.SequenceNode):
        return [NamedSet(_name_of(file), _config({"kind": "prompts", "path": file}, where), where)]
    tree = yaml.safe_load(content)
    if not isinstance(tree, dict) or not tree or not all(isinstance(value, dict) for value in tree.values()):
        hint = "write `NAME: {kind: …, path: …}` for each set, or a list of prompts, see docs/evaluation.md"
        raise FledgeError("it has neither evaluation sets nor prompts", where=file, hint=hint)
    found = []
    for name, settings in tree.items():
        try:
            check_name(str(name))
        except ValueError as error:
            raise FledgeError(str(error), where=f"{file}: {name}") from None
        found.append(NamedSet(str(name), _config(settings, f"{file}: {name}"), f"{file}: {name}"))
    return found


def _config(settings: Mapping[str, Any], where: str) -> EvaluationSetConfig:
    try:
        return EvaluationSetConfig.model_validate(settings)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        message = first_line(ValueError(problem["msg"].removeprefix("Value error, ")))
        raise FledgeError(f"{key}: {message}" if key else message, where=where) from None


def _name_of(path: str) -> str:
    """A name for the set in a file or folder; of a glob that of its folder."""
    part = next((one for one in reversed(Path(path).parts) if not re.search(r"[*?\[]", one)), "set")
    return re.sub(r"[^\w.-]", "-", part.partition(".")[0] or part).lstrip("._-") or "set"


def folder_names(models: Sequence[str]) -> list[str]:
    """A folder for the results of each model: the end of its path with as many parts as tell it from the others."""
    parts = [[part for part in Path(model).parts if part not in ("/", ".", "..")] or ["model"] for model in models]
    names = []
    for own in parts:
        ends = ("-".join(own[-count:]) for count in range(1, len(own) + 1))
        others = [other for other in parts if other is not own]
        names.append(next((end for end in ends if all("-".join(one[-end.count("-") - 1 :]) != end for one in others)), ""))
    return [re.sub(r"[^\w.-]", "-", name or f"model-{number}") for number, name in enumerate(names, 1)]


# -- what is shown -----------------------------------------------------------------------------------------------------------


def _as_json(results: Results, compared: Mapping[str, Mapping[str, SetComparison]]) -> dict[str, Any]:
    sets = {}
    for name, of_models in results.items():
        first = next(iter(of_models.values()))
        sets[name] = {
            "kind": first.kind,
            "fingerprint": first.fingerprint,
            "items": len(first.items),
            "models": {
                model: {
                    "metrics": {metric: asdict(value) for metric, value in result.metrics.items()},
                    "groups": {
                        group: {metric: asdict(value) for metric, value in metrics.items()}
                        for group, metrics in result.groups.items()
                    },
                    "seconds": result.seconds,
                    "notes": list(result.notes),
                }
                for model, result in of_models.items()
            },
            "differences": {model: comparison.as_dict() for model, comparison in compared[name].items()},
        }
    return nan_to_none({"sets": sets})


def _print(results: Results, compared: Mapping[str, Mapping[str, SetComparison]], out: Path | None) -> None:
    terminal = output_terminal()
    for name, of_models in results.items():
        first = next(iter(of_models.values()))
        terminal.print(Text(f"\n{name}: {len(first.items):,} items of kind {first.kind}", style="bold"), soft_wrap=True)
        rows = {metric: {model: result.metrics.get(metric) for model, result in of_models.items()} for metric in first.metrics}
        terminal.print(_table("", {metric: (metric, values) for metric, values in rows.items()}, list(of_models)))
        if first.groups:
            metric = next(iter(first.metrics))
            groups = {
                group: (metric, {model: result.groups.get(group, {}).get(metric) for model, result in of_models.items()})
                for group in first.groups
            }
            terminal.print(_table(f"{metric} by group", groups, list(of_models)))
        for model, comparison in compared[name].items():
            terminal.print(Text(f"{model}, compared with {next(iter(of_models))}:"), soft_wrap=True)
            for metric in list(comparison.metrics)[:COMPARED]:
                terminal.print(Text(f"  {describe(comparison.metrics[metric])}"), soft_wrap=True)
        for note in dict.fromkeys(note for result in of_models.values() for note in result.notes):
            terminal.print(Text(f"note: {note}", style="dim"), soft_wrap=True)
    if out is not None:
        terminal.print(Text(f"\nresults: {out}"), soft_wrap=True)


def _table(title: str, rows: Mapping[str, tuple[str, Mapping[str, MetricValue | None]]], models: Sequence[str]) -> Table:
    """A row for each metric or group, a column for each model; 95 % intervals in brackets."""
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column(Text(title), overflow="fold")
    for model in models:
        table.add_column(Verbatim(model), justify="right", overflow="fold")
    for label, (metric, values) in rows.items():
        cells = ["" if (value := values[model]) is None else metric_text(metric, value) for model in models]
        table.add_row(Text(label), *map(Text, cells))
    return table

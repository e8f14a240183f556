"""Tasks of lm-eval (https://github.com/EleutherAI/lm-evaluation-harness) on a model of fledge, offline."""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fledge.errors import FledgeError, first_line, missing_extra
from fledge.evaluate.records import ItemResult, MetricValue, content_hash, item_ids
from fledge.evaluate.sets.base import EvaluationSet, Measured, rate, ratio_and_interval, shortened
from fledge.evaluate.sets.model import EvaluatedModel, Progress
from fledge.recipe.sections.evaluation_sets import EvaluationSetConfig

NAMES = {"acc": "accuracy", "acc_norm": "accuracy_norm"}  # of lm-eval's metrics that have another name here
FEW_SHOT_SEED = 1234  # lm-eval's own
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
NONE = "none"  # lm-eval's name of the answers as they are


class LmEvalSet(EvaluationSet):
    """A task, or a group of tasks, of lm-eval. Its items are the documents of the tasks."""

    def __init__(self, name: str, config: EvaluationSetConfig, key: str) -> None:
        self._loaded = _load(str(config.task), config, key)
        self._documents = {
            task_name: [_plain(document) for document in _first(task.eval_docs, config.max_samples)]
            for task_name, task in self._tasks.items()
        }
        ids = item_ids([[task, document] for task, documents in self._documents.items() for document in documents])
        super().__init__(name, config, ids)
        settings = [_plain(task.dump_config()) for task in self._tasks.values()]
        self.fingerprint = content_hash(self.fingerprint, settings)
        self._results: dict[str, Any] = {}

    @property
    def _tasks(self) -> Mapping[str, Any]:
        return self._loaded["tasks"]

    def measure(self, model: EvaluatedModel, progress: Progress) -> Measured:
        """Let lm-eval evaluate the tasks."""
        from lm_eval.evaluator import evaluate

        from fledge.evaluate.sets.lm_eval_model import LmEvalModel

        adapter = LmEvalModel(model, self.count, progress)
        for task in self._tasks.values():
            task.set_fewshot_seed(seed=FEW_SHOT_SEED)
        with offline(), quiet():
            self._results = dict(
                evaluate(lm=adapter, task_dict=self._loaded, limit=self.config.max_samples, bootstrap_iters=0, log_samples=True)
                or {}
            )
        adapter.finish()
        shots = {self._results["n-shot"].get(name) for name in self._tasks}
        notes = [
            f"lm-eval {_version()}, {' or '.join(map(str, sorted(shots, key=str)))} solved documents before each question",
            model.describe_start(),
            *adapter.notes,
        ]
        return Measured(items=self._items(), notes=notes)

    def _items(self) -> list[ItemResult]:
        """The documents in their order, each with the metrics of all filters."""
        ids, items = iter(self.ids), []
        for task, documents in self._documents.items():
            filters = list(dict.fromkeys(sample["filter"] for sample in self._results["samples"][task]))
            by_document: dict[int, list[Any]] = {}
            for sample in self._results["samples"][task]:
                by_document.setdefault(sample["doc_id"], []).append(sample)
            items += [self._item(next(ids), task, by_document[number], filters) for number in range(len(documents))]
        return items

    def _item(self, item_id: str, task: str, samples: Sequence[Mapping[str, Any]], filters: Sequence[str]) -> ItemResult:
        first, values = samples[0], {}
        for sample in samples:
            for metric in sample["metrics"]:
                if isinstance(sample[metric], bool | int | float):
                    values[metric_name(metric, sample["filter"], filters)] = float(sample[metric])
        answer = first["resps"][0][0]
        return ItemResult(
            id=item_id,
            group=task if len(self._tasks) > 1 else "",
            prompt=shortened(str(first["arguments"][0][0])),
            expected=str(first["target"]),
            given=answer if isinstance(answer, str) else None,
            values=values,
        )

    def summarize(self, items: Sequence[ItemResult]) -> dict[str, MetricValue]:
        """The metrics as lm-eval gives them, with an interval where they are means of the items' values."""
        name = items[0].group if len({item.group for item in items}) == 1 and items[0].group else self._name_of_all()
        results = self._results["results"].get(name, {})
        better = self._results["higher_is_better"].get(name, {})
        filters = list(dict.fromkeys(key.partition(",")[2] for key in results if "," in key))
        metrics = {}
        for key, value in results.items():
            metric, _, filter_name = key.partition(",")
            if not filter_name or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            own = metric_name(metric, filter_name, filters)
            metrics[own] = _metric(own, float(value), items, bool(better.get(metric, True)))
        return metrics

    def _name_of_all(self) -> str:
        """The name under which lm-eval has the results of all items."""
        return next(iter(self._tasks)) if len(self._tasks) == 1 else str(self.config.task)


def _metric(name: str, value: float, items: Sequence[ItemResult], higher_is_better: bool) -> MetricValue:
    """A metric of lm-eval; with an interval if it is the mean of the values of these items."""
    values = [item.values[name] for item in items if name in item.values]
    interval = None
    if values and abs(sum(values) / len(values) - value) < 1e-9:
        is_rate = all(one in (0.0, 1.0) for one in values)
        interval = rate(items, name).interval if is_rate else ratio_and_interval(values, [1.0] * len(values))[1]
    return MetricValue(value=value, interval=interval, count=len(items), higher_is_better=higher_is_better)


def metric_name(metric: str, filter_name: str, filters: Sequence[str]) -> str:
    """The name of a metric of lm-eval. With several filters of answers, those after the first one are a part of it."""
    name = NAMES.get(metric, metric)
    is_first = filter_name == NONE or not filters or filter_name == filters[0]
    return name if is_first else f"{name}_{filter_name.replace('-', '_')}"


# -- loading -----------------------------------------------------------------------------------------------------------------


def _load(task: str, config: EvaluationSetConfig, key: str) -> dict[str, Any]:
    """The task with its documents. Raises FledgeError if lm-eval is missing, or if the task or its data are not there."""
    try:
        with offline(), quiet():
            from lm_eval.tasks import TaskManager
    except ImportError:
        raise missing_extra("lm-eval", "lm-eval", f"{key}: a set of kind lm_eval") from None
    if config.path is not None and not Path(config.path).is_dir():
        raise FledgeError(f"there is no folder '{config.path}'", where=f"{key}.path", hint="name a folder with files of tasks")
    with offline(), quiet():
        manager = TaskManager(include_path=config.path, include_defaults=config.path is None)
        if config.path is not None and task not in manager.task_index:
            manager = TaskManager(include_path=config.path)  # reads all files of lm-eval, which takes a while
        if task not in manager.task_index:
            hint = "`lm-eval ls tasks` lists those of lm-eval; a folder of your own is named by path"
            raise FledgeError(f"lm-eval has no task '{task}'", where=f"{key}.task", hint=hint)
        try:
            loaded: dict[str, Any] = dict(manager.load(task))
        except Exception as error:  # of datasets, of huggingface_hub or of the task's own code, without a common type
            raise _not_loaded(task, error, key) from None
    tasks: dict[str, Any] = loaded["tasks"]
    for one in tasks.values():
        _set_few_shot(one, config.few_shot if "few_shot" in config.model_fields_set else None)
    return {**loaded, "tasks": tasks}


def _not_loaded(task: str, error: Exception, key: str) -> FledgeError:
    names = " ".join(type(one).__name__ for one in (error, error.__cause__, error.__context__) if one is not None)
    if any(word in names + str(error) for word in ("Offline", "ConnectionError", "LocalEntryNotFound", "Couldn't reach")):
        return FledgeError(
            f"the data of task '{task}' are not on this machine, and nothing is downloaded: {first_line(error)}",
            where=f"{key}.task",
            hint="write a task file with dataset_path: json and data_files of your own in dataset_kwargs, in the folder path",
        )
    return FledgeError(f"lm-eval cannot load task '{task}': {type(error).__name__}: {first_line(error)}", where=f"{key}.task")


def _set_few_shot(task: Any, few_shot: int | None) -> None:
    """The number of solved documents: that of the recipe, unless the task says that it has none; else the task's own."""
    own = task.get_config("num_fewshot")
    if own is None:
        task.set_config(key="num_fewshot", value=few_shot or 0)
    elif own != 0 and few_shot is not None:
        task.set_config(key="num_fewshot", value=few_shot)


def _first(documents: Any, most: int | None) -> Iterator[Any]:
    for number, document in enumerate(documents):
        if most is not None and number >= most:
            return
        yield document


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    return json.loads(json.dumps(value, default=str))


def _version() -> str:
    from importlib.metadata import version

    return version("lm-eval")


@contextmanager
def offline() -> Iterator[None]:
    """A context in which the libraries of Hugging Face read what is on this machine and ask no server."""
    before = {name: os.environ.get(name) for name in OFFLINE}
    os.environ.update(dict.fromkeys(OFFLINE, "1"))
    import datasets.config
    import huggingface_hub.constants

    switches = [(datasets.config, "HF_HUB_OFFLINE"), (datasets.config, "HF_DATASETS_OFFLINE")]
    switches.append((huggingface_hub.constants, "HF_HUB_OFFLINE"))
    found = [(module, name, getattr(module, name)) for module, name in switches if hasattr(module, name)]
    for module, name, _ in found:
        setattr(module, name, True)
    try:
        yield
    finally:
        for module, name, value in found:
            setattr(module, name, value)
        for name, text in before.items():
            if text is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = text


@contextmanager
def quiet() -> Iterator[None]:
    """A context without the library's own progress bars and remarks."""
    import datasets
    from tqdm import tqdm

    logger, level, had_bars = logging.getLogger("lm_eval"), logging.getLogger("lm_eval").level, tqdm.__init__
    datasets_had_bars = not datasets.are_progress_bars_disabled()

    def without_bar(self: Any, *arguments: Any, **options: Any) -> None:
        had_bars(self, *arguments, **{**options, "disable": True})

    logger.setLevel(logging.CRITICAL)
    tqdm.__init__ = without_bar  # type: ignore[method-assign]
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        tqdm.__init__ = had_bars  # type: ignore[method-assign]
        logger.setLevel(level)
        if datasets_had_bars:
            datasets.enable_progress_bars()

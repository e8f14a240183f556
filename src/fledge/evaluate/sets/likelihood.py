"""Sets that compare the probabilities of texts: plain text, minimal pairs, and multiple choice."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fledge.data.parsing.columns import RowError
from fledge.data.parsing.items import Document
from fledge.data.parsing.rows import parse_document, parse_row
from fledge.evaluate.records import ItemResult, MetricValue, item_ids
from fledge.evaluate.sets.base import EvaluationSet, Measured, rate, ratio, shortened, slices
from fledge.evaluate.sets.few_shot import Solved, glue, read_asked
from fledge.evaluate.sets.model import Continuation, EvaluatedModel, Progress
from fledge.evaluate.sets.rows import filled, group_of, read_items, text_of
from fledge.objective.base import bits_per_unit
from fledge.recipe import Source
from fledge.recipe.sections.evaluation_sets import EvaluationSetConfig

MAX_NATS = 700.0  # a perplexity is at most exp of this


def _without_number(count: int) -> list[str]:
    """A sentence on items whose probabilities are not numbers."""
    return [f"{count:,} items have no value: the model gives probabilities that are not numbers"] if count else []


# -- text ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Text:
    text: str
    file: str


class TextSet(EvaluationSet):
    """Documents: loss, perplexity and bits per byte, of each file and of all."""

    def __init__(self, name: str, config: EvaluationSetConfig, key: str) -> None:
        source = Source.model_validate({"path": config.path, "columns": config.columns})

        def parse(file: str, where: str, row: Any) -> _Text:
            item = parse_row(row, source, parse_document)
            assert isinstance(item, Document)
            return _Text(item.text, file)

        self.items, notes = read_items(source, key, parse, "a row has a column text", most=config.max_samples)
        self._names = _short_names([one.file for one in self.items])
        super().__init__(name, config, item_ids([one.text for one in self.items]), [f"left out: {one}" for one in notes])

    def measure(self, model: EvaluatedModel, progress: Progress) -> Measured:
        """Score each document in windows of the model's positions."""
        results: list[ItemResult] = []
        cut = 0
        for part in slices(list(zip(self.ids, self.items, strict=True)), lambda one: len(one[1].text)):
            windows = [model.windows(model.tokenizer.encode(item.text)) for _, item in part]
            scores = iter(model.score([one for parts in windows for one in parts]))
            for (item_id, item), parts in zip(part, windows, strict=True):
                logprobs = [value for _ in parts for value in next(scores).logprobs]
                results.append(self._result(item_id, item, -math.fsum(logprobs), len(logprobs)))
                cut += len(parts) > 1
            progress(len(part))
        notes = [model.describe_start()]
        if cut:
            most = model.model.max_positions
            notes.append(f"{cut:,} texts are longer than {most:,} tokens: each token is scored once, in windows of that length")
        notes += _without_number(sum(math.isnan(one.values["loss"]) for one in results))
        return Measured(items=results, notes=notes)

    def _result(self, item_id: str, item: _Text, nll: float, tokens: int) -> ItemResult:
        size = len(item.text.encode("utf-8", "replace"))
        values = {"loss": nll / max(1, tokens), "bits_per_byte": bits_per_unit(nll, size), "tokens": tokens, "bytes": size}
        return ItemResult(id=item_id, group=self._names[item.file], prompt=shortened(item.text), values=values)

    def summarize(self, items: Sequence[ItemResult]) -> dict[str, MetricValue]:
        """`loss` (nats per token), `perplexity`, `bits_per_byte`."""

        def nll(values: Mapping[str, float]) -> float:
            return values["loss"] * values["tokens"]

        def tokens(values: Mapping[str, float]) -> float:
            return values["tokens"]

        return {
            "loss": ratio(items, nll, tokens),
            "perplexity": ratio(items, nll, tokens, lambda loss: math.exp(min(loss, MAX_NATS))),
            "bits_per_byte": ratio(items, lambda one: bits_per_unit(nll(one), 1), lambda one: one["bytes"]),
        }


def _short_names(files: Sequence[str]) -> dict[str, str]:
    """A group for each file: its name without what follows a dot; "" if there is one file; the path where names are equal."""
    distinct = list(dict.fromkeys(files))
    stems = [Path(file).name.partition(".")[0] or file for file in distinct]
    if len(distinct) == 1:
        return {distinct[0]: ""}
    return {file: stem if stems.count(stem) == 1 else file for file, stem in zip(distinct, stems, strict=True)}


# -- minimal pairs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pair:
    good: str
    bad: str
    group: str


class MinimalPairs(EvaluationSet):
    """Pairs of sentences of which one is right (BLiMP, Warstadt et al. 2020): whether it is the likelier one."""

    def __init__(self, name: str, config: EvaluationSetConfig, key: str) -> None:
        roles = {"good": "sentence_good", "bad": "sentence_bad", "group": "UID", **config.columns}

        def parse(file: str, where: str, row: Any) -> _Pair:
            return _Pair(text_of(row, roles["good"]), text_of(row, roles["bad"]), group_of(row, roles["group"]))

        needed = f"a row has the columns {roles['good']} and {roles['bad']}"
        self.items, notes = read_items(Source(path=config.path), key, parse, needed, most=config.max_samples)
        ids = item_ids([[one.good, one.bad] for one in self.items])
        super().__init__(name, config, ids, [f"left out: {one}" for one in notes])

    def measure(self, model: EvaluatedModel, progress: Progress) -> Measured:
        """Compare the log-probabilities of the two sentences of each pair."""
        results: list[ItemResult] = []
        cut = broken = 0
        for part in slices(list(zip(self.ids, self.items, strict=True)), lambda one: len(one[1].good) + len(one[1].bad)):
            sentences = [model.continuation("", text) for _, item in part for text in (item.good, item.bad)]
            cut += sum(good.end_was_cut or bad.end_was_cut for good, bad in zip(sentences[::2], sentences[1::2], strict=True))
            sums = [math.fsum(one.logprobs) for one in model.score(sentences)]
            for (item_id, item), good, bad in zip(part, sums[::2], sums[1::2], strict=True):
                given = None if math.isnan(good + bad) else item.good if good > bad else item.bad
                broken += given is None
                results.append(
                    ItemResult(
                        id=item_id,
                        group=item.group,
                        prompt="",
                        expected=item.good,
                        given=given,
                        values={} if given is None else {"accuracy": float(good > bad)},
                    )
                )
            progress(len(part))
        notes = [model.describe_start(), *_without_number(broken)]
        if cut:
            notes.append(f"{cut:,} pairs have a sentence that is longer than the model's positions: its end was left out")
        return Measured(items=results, notes=notes)

    def summarize(self, items: Sequence[ItemResult]) -> dict[str, MetricValue]:
        """`accuracy`: the share of pairs whose right sentence is likelier; equally likely ones count as wrong."""
        return {"accuracy": rate(items, "accuracy")}


# -- multiple choice ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Question:
    prompt: str
    choices: tuple[str, ...]
    label: int
    group: str

    @property
    def characters(self) -> int:
        """Of the texts that are scored, without solved rows."""
        return sum(len(self.prompt) + len(choice) for choice in self.choices)


class MultipleChoice(EvaluationSet):
    """Questions with choices of which one is right: whether it is the likeliest after the question."""

    def __init__(self, name: str, config: EvaluationSetConfig, key: str) -> None:
        roles = {"choices": "choices", "label": "label", "group": "group", **config.columns}

        def parse(file: str, where: str, row: Any) -> _Question:
            choices, label = choices_and_label(row, roles["choices"], roles["label"])
            return _Question(filled(config.template, row), choices, label, group_of(row, roles["group"]))

        needed = f"a row has the columns {roles['choices']} and {roles['label']}, and those that template names"
        self.items, notes, self._few_shot = read_asked(config, key, parse, needed, _solved)
        super().__init__(name, config, item_ids([[one.prompt, one.choices, one.label] for one in self.items]), notes)
        self.fingerprint = self._few_shot.joined(self.fingerprint)

    def measure(self, model: EvaluatedModel, progress: Progress) -> Measured:
        """Compare the log-probabilities of the choices of each question."""
        results: list[ItemResult] = []
        cut = end_cut = 0
        for part in slices(list(zip(self.ids, self.items, strict=True)), lambda one: one[1].characters):
            asked = [self._continuations(model, item) for _, item in part]
            scores = iter(model.score([one for parts in asked for one in parts]))
            for (item_id, item), parts in zip(part, asked, strict=True):
                sums = [math.fsum(next(scores).logprobs) for _ in parts]
                results.append(_chosen(item_id, item, sums))
                cut += any(one.was_cut for one in parts)
                end_cut += any(one.end_was_cut for one in parts)
            progress(len(part))
        notes = [f"{cut:,} questions are longer than the model's positions: their beginning was left out"] if cut else []
        if end_cut:
            notes.append(f"{end_cut:,} questions have a choice that is longer than the model's positions: its end was left out")
        return Measured(items=results, notes=[*notes, *_without_number(sum(not one.values for one in results))])

    def _continuations(self, model: EvaluatedModel, item: _Question) -> list[Continuation]:
        if self.config.chat:
            prompt = self._few_shot.chat_prompt(model.tokenizer, item.prompt)
            return [model.continuation("", choice, prompt) for choice in item.choices]
        context = self._few_shot.context(item.prompt)
        return [model.continuation(context, f"{glue(context)}{choice}") for choice in item.choices]

    def summarize(self, items: Sequence[ItemResult]) -> dict[str, MetricValue]:
        """`accuracy` by the log-probability of each choice, `accuracy_norm` by it ÷ the choice's characters."""
        return {name: rate(items, name) for name in ("accuracy", "accuracy_norm")}


def _solved(item: _Question) -> Solved:
    return Solved(item.prompt, item.choices[item.label])


def _chosen(item_id: str, item: _Question, sums: Sequence[float]) -> ItemResult:
    if any(map(math.isnan, sums)):
        return ItemResult(id=item_id, group=item.group, prompt=item.prompt, expected=item.choices[item.label])
    likeliest = int(np.argmax(sums))
    by_length = int(np.argmax([value / len(choice) for value, choice in zip(sums, item.choices, strict=True)]))
    return ItemResult(
        id=item_id,
        group=item.group,
        prompt=item.prompt,
        expected=item.choices[item.label],
        given=item.choices[likeliest],
        values={"accuracy": float(likeliest == item.label), "accuracy_norm": float(by_length == item.label)},
    )


def choices_and_label(row: Any, choices_column: str, label_column: str) -> tuple[tuple[str, ...], int]:
    """The choices of a row and the number of the right one, from 0. Choices are a list of texts, or an object of the lists
    `text` and `label`. The label is a number from 0, one of those labels, a letter from A on, or the text of a choice. Raises
    RowError for anything else."""
    value = row.get(choices_column) if isinstance(row, dict) else None
    names: list[str] = []
    if isinstance(value, dict) and isinstance(value.get("label"), list | tuple):
        names, value = [str(name) for name in value["label"]], value.get("text")
    if not isinstance(value, list | tuple) or len(value) < 2 or not all(isinstance(one, str) and one.strip() for one in value):
        raise RowError(f"column {choices_column} is no list of two or more texts")
    choices, label = tuple(map(str, value)), row.get(label_column)
    if isinstance(label, bool) or not isinstance(label, int | str):
        raise RowError(f"column {label_column} is neither a number nor a text")
    if isinstance(label, str):
        found = _named(label.strip(), names, choices)
        if found is None:
            raise RowError(f"column {label_column} names no choice", f"{label!r} of {', '.join(names or choices)}")
        label = found
    if not 0 <= label < len(choices):
        raise RowError(f"column {label_column} is the number of no choice", f"{label} of {len(choices)} choices, from 0")
    return choices, label


def _named(label: str, names: Sequence[str], choices: Sequence[str]) -> int | None:
    if label in names:
        return names.index(label)
    if label in choices:
        return choices.index(label)
    if label.isascii() and label.isdigit():
        return int(label)
    return ord(label.upper()) - ord("A") if len(label) == 1 and label.isascii() and label.isalpha() else None

"""Sets whose items are answered: conversations with reference answers, prompts with rules, and questions of a template."""

import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fledge.data.parsing.columns import RowError
from fledge.evaluate.answers import RIGHT, mark
from fledge.evaluate.bleu import import_sacrebleu
from fledge.evaluate.metrics import (
    Answer,
    check_metrics,
    measure_answers,
    measure_set,
    needs_gain,
    needs_sacrebleu,
    with_gains,
)
from fledge.evaluate.prompt_sets import PREFIX, builtin_path
from fledge.evaluate.prompt_tests import Case, load_cases
from fledge.evaluate.records import ItemResult, MetricValue, item_ids
from fledge.evaluate.sets.base import EvaluationSet, Measured, rate
from fledge.evaluate.sets.few_shot import Solved, read_asked
from fledge.evaluate.sets.model import EvaluatedModel, GeneratedText, Progress
from fledge.evaluate.sets.questions import ScoredQuestion, read_questions
from fledge.evaluate.sets.rows import filled, group_of, spread, text_of
from fledge.recipe import Source
from fledge.recipe.sections.evaluation_sets import EvaluationSetConfig
from fledge.tokenizer import Message, Tokenizer

OF_ALL_ANSWERS = (
    "refusal",
    "repetition",
    "longest_loop",
    "prompt_copy",
    "wrong_language",
    "identity_template",
    "ended",
    "length",
)
WITH_REFERENCE = ("exact_match", "valid_json", "f1", "rouge_l")


class GeneratedSet(EvaluationSet):
    """A set whose items are answered greedily. `metrics`: of the answers, as in `evaluate.metrics`; those of the recipe come
    before these."""

    stop: Sequence[str] = ()  # texts that end an answer
    metrics: Sequence[str] = OF_ALL_ANSWERS
    own_rate = ""  # a metric, 0 or 1, that the set itself gives each item

    def __init__(
        self, name: str, config: EvaluationSetConfig, ids: Sequence[str], notes: Sequence[str] = (), *, key: str
    ) -> None:
        super().__init__(name, config, ids, notes)
        check_metrics(config.metrics, f"{key}.metrics")
        if needs_sacrebleu(config.metrics):
            import_sacrebleu(f"{key}.metrics")
        self.metrics = [one for one in dict.fromkeys((*config.metrics, *type(self).metrics)) if one != self.own_rate]

    @abstractmethod
    def result(self, number: int, answer: GeneratedText) -> ItemResult:
        """The result of item `number` with its answer, with the values that the set itself gives it."""

    def measure(self, model: EvaluatedModel, progress: Progress) -> Measured:
        """Answer all items."""
        prompts = self.prompts(model.tokenizer)
        answers = model.generate(prompts, self.config.max_new_tokens, stop=self.stop, where=self.places, progress=progress)
        items = [self.result(number, answer) for number, answer in enumerate(answers)]
        measured = [Answer.of(item) for item in items]
        if needs_gain(self.metrics):
            measured = with_gains(measured, model.model, model.tokenizer, prompts, [one.tokens for one in answers])
        values = measure_answers(self.metrics, measured)
        return Measured(items=[replace(item, values={**item.values, **more}) for item, more in zip(items, values, strict=True)])

    def summarize(self, items: Sequence[ItemResult]) -> dict[str, MetricValue]:
        """The set's own rate, and the metrics of the answers to which they apply."""
        own = {self.own_rate: rate(items, self.own_rate)} if self.own_rate else {}
        return own | measure_set(self.metrics, [Answer.of(item) for item in items], [item.values for item in items])


def _read_turns(turns: Sequence[Message]) -> str:
    """Turns as a person reads them."""
    return "\n".join(f"{turn.role}: {turn.full_content}" for turn in turns)


# -- answers -----------------------------------------------------------------------------------------------------------------


class AnswersSet(GeneratedSet):
    """Conversations that end with the reference answer."""

    metrics = (*WITH_REFERENCE, *OF_ALL_ANSWERS)

    def __init__(self, name: str, config: EvaluationSetConfig, key: str) -> None:
        source = Source.model_validate({"path": config.path, "columns": config.columns})
        self.questions: list[ScoredQuestion]
        self.questions, notes = read_questions(source, key, config.max_samples)
        contents = [
            [[[one.role, one.content] for one in question.conversation.messages], question.conversation.tools]
            for question in self.questions
        ]
        super().__init__(name, config, item_ids(contents), [f"left out: {one}" for one in notes], key=key)

    @property
    def places(self) -> list[str]:
        """The file and line of each conversation."""
        return [question.where for question in self.questions]

    def prompts(self, tokenizer: Tokenizer) -> list[list[int]]:
        """All turns before the reference answer."""
        return [question.prompt(tokenizer) for question in self.questions]

    def result(self, number: int, answer: GeneratedText) -> ItemResult:
        """What is wrong in the answer, as `fledge score` says it."""
        question = self.questions[number]
        marked = mark(question.answered(answer.text, answer.finish_reason))
        return ItemResult(
            id=self.ids[number],
            group=question.group,
            prompt=question.question,
            context=_read_turns(question.conversation.messages[:-2]),
            expected=question.expected,
            given=answer.text,
            finish_reason=answer.finish_reason,
            failures=() if marked.kind == RIGHT else (marked.kind, *marked.details),
        )


# -- prompts -----------------------------------------------------------------------------------------------------------------


class PromptSet(GeneratedSet):
    """Prompts with rules for the answers, as prompt tests have them, in groups by what they look at (`dimension`)."""

    own_rate = "passed"

    def __init__(self, name: str, config: EvaluationSetConfig, key: str) -> None:
        path = str(config.path)
        file = builtin_path(path, f"{key}.path") if path.startswith(PREFIX) else Path(path)
        self.cases: list[Case] = spread(load_cases(file), config.max_samples)
        super().__init__(name, config, item_ids([case.model_dump(mode="json") for case in self.cases]), key=key)

    @property
    def places(self) -> list[str]:
        """The name of each case."""
        return [f"{self.name}: '{case.title[:60]}'" for case in self.cases]

    def prompts(self, tokenizer: Tokenizer) -> list[list[int]]:
        """The conversations of the cases."""
        return [tokenizer.encode_prompt(case.conversation()) for case in self.cases]

    def result(self, number: int, answer: GeneratedText) -> ItemResult:
        """`passed`: whether all rules hold."""
        case = self.cases[number]
        failures = tuple(case.expect.violations(answer.text, ended=answer.finish_reason == "stop"))
        return ItemResult(
            id=self.ids[number],
            group=case.dimension,
            prompt=case.conversation()[-1].content,
            context=_read_turns(case.conversation()[:-1]),
            expected=case.expect.reference[0] if case.expect.reference else None,
            given=answer.text,
            finish_reason=answer.finish_reason,
            values={"passed": float(not failures)},
            failures=failures,
        )


# -- generation --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    where: str
    prompt: str
    answer: str
    expected: str
    group: str


class GenerationSet(GeneratedSet):
    """Questions that a template writes as a prompt, with solved rows before them; the answer is what a regular expression finds
    in the text (GSM8K and its like)."""

    own_rate = "exact_match"
    metrics = ("repetition", "ended", "length")

    def __init__(self, name: str, config: EvaluationSetConfig, key: str) -> None:
        roles = {"answer": "answer", "group": "group", **config.columns}
        self._pattern = None if config.extract is None else re.compile(config.extract)
        self.stop = config.stop_texts

        def parse(file: str, where: str, row: Any) -> _Task:
            answer = text_of(row, roles["answer"])
            expected = self._extracted(answer)
            if expected is None:
                raise RowError("extract finds nothing in the right answer")
            return _Task(where, filled(config.template, row), answer, expected, group_of(row, roles["group"]))

        needed = f"a row has the column {roles['answer']}, in which extract finds the answer, and those that template names"
        self.items, notes, self._few_shot = read_asked(config, key, parse, needed, _solved)
        super().__init__(name, config, item_ids([[one.prompt, one.expected] for one in self.items]), notes, key=key)
        self.fingerprint = self._few_shot.joined(self.fingerprint)

    @property
    def places(self) -> list[str]:
        """The file and line of each row."""
        return [item.where for item in self.items]

    def prompts(self, tokenizer: Tokenizer) -> list[list[int]]:
        """The solved rows and the question, behind the tokens that the tokenizer puts before a text."""
        if self.config.chat:
            return [self._few_shot.chat_prompt(tokenizer, one.prompt) for one in self.items]
        contexts = (self._few_shot.context(one.prompt) for one in self.items)
        return [[*tokenizer.document_start, *tokenizer.encode(context)] for context in contexts]

    def result(self, number: int, answer: GeneratedText) -> ItemResult:
        """`exact_match`: whether what is found in the answer equals what is found in the right one; both as `plain_answer`."""
        item = self.items[number]
        found = self._extracted(answer.text)
        is_right = found is not None and plain_answer(found) == plain_answer(item.expected)
        failure = "no answer is found in the text" if found is None else f"{found.strip()!r} is not {item.expected.strip()!r}"
        return ItemResult(
            id=self.ids[number],
            group=item.group,
            prompt=item.prompt,
            expected=item.expected,
            given=answer.text,
            finish_reason=answer.finish_reason,
            values={"exact_match": float(is_right)},
            failures=() if is_right else (failure,),
        )

    def _extracted(self, text: str) -> str | None:
        """The answer in a text; None if the regular expression finds none."""
        if self._pattern is None:
            return text
        match = self._pattern.search(text)
        return None if match is None else (match[1] if self._pattern.groups else match[0])


def _solved(task: _Task) -> Solved:
    return Solved(task.prompt, task.answer)


def plain_answer(text: str) -> str:
    """An answer as it is compared: in lower case, without commas, dollar signs, a full stop at its end and white space around
    it, as lm-eval compares the answers of GSM8K."""
    return re.sub(r"[,$]", "", text).strip().removesuffix(".").casefold().strip()

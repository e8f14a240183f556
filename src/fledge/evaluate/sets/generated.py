"""Sets whose items are answered: conversations with reference answers, prompts with rules, and questions of a template."""

import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledge.data.parsing.columns import RowError
from fledge.evaluate.answers import RIGHT, answer_f1, mark
from fledge.evaluate.prompt_tests import Case, load_cases
from fledge.evaluate.records import ItemResult, MetricValue, item_ids
from fledge.evaluate.rules import repetition
from fledge.evaluate.sets.base import EvaluationSet, Measured, rate, ratio
from fledge.evaluate.sets.few_shot import FewShot, Solved
from fledge.evaluate.sets.model import EvaluatedModel, GeneratedText, Progress
from fledge.evaluate.sets.questions import ScoredQuestion, read_questions
from fledge.evaluate.sets.rows import filled, group_of, read_items, spread, text_of
from fledge.recipe import Source
from fledge.recipe.sections.evaluation_sets import EvaluationSetConfig
from fledge.tokenizer import Tokenizer

RATES = ("exact_match", "passed", "valid_json", "ended")  # of an answer: 0 or 1
MEANS = {"f1": True, "repetition": False, "length": False}  # of answers, and whether higher is better


class GeneratedSet(EvaluationSet):
    """A set whose items are answered greedily."""

    stop: Sequence[str] = ()  # texts that end an answer

    @abstractmethod
    def result(self, number: int, answer: GeneratedText) -> ItemResult:
        """The result of item `number` with its answer, without the values that all answers have."""

    def measure(self, model: EvaluatedModel, progress: Progress) -> Measured:
        """Answer all items."""
        answers = model.generate(
            self.prompts(model.tokenizer), self.config.max_new_tokens, stop=self.stop, where=self.places, progress=progress
        )
        return Measured(items=[_with_values(self.result(number, answer)) for number, answer in enumerate(answers)])

    def summarize(self, items: Sequence[ItemResult]) -> dict[str, MetricValue]:
        """The mean of each value that items have."""
        present = {name for item in items for name in item.values}
        rates = {name: rate(items, name) for name in RATES if name in present}
        return rates | {
            name: ratio([one for one in items if name in one.values], lambda values, key=name: values[key], lambda values: 1.0,
                        higher_is_better=better)
            for name, better in MEANS.items()
            if name in present
        }  # fmt: skip


def _with_values(item: ItemResult) -> ItemResult:
    given = item.given or ""
    values = {
        "ended": float(item.finish_reason == "stop"),
        "length": float(len(given)),
        "repetition": repetition(given),
        **item.values,
    }
    return ItemResult(**{**vars(item), "values": values})


# -- answers -----------------------------------------------------------------------------------------------------------------


class AnswersSet(GeneratedSet):
    """Conversations that end with the reference answer."""

    def __init__(self, name: str, config: EvaluationSetConfig, key: str) -> None:
        source = Source.model_validate({"path": config.path, "columns": config.columns})
        questions, notes = read_questions(source, key)
        self.questions: list[ScoredQuestion] = spread(questions, config.max_samples)
        contents = [
            [[[one.role, one.content] for one in question.conversation.messages], question.conversation.tools]
            for question in self.questions
        ]
        super().__init__(name, config, item_ids(contents), [f"left out: {one}" for one in notes])

    @property
    def places(self) -> list[str]:
        """The file and line of each conversation."""
        return [question.where for question in self.questions]

    def prompts(self, tokenizer: Tokenizer) -> list[list[int]]:
        """All turns before the reference answer."""
        return [question.prompt(tokenizer) for question in self.questions]

    def result(self, number: int, answer: GeneratedText) -> ItemResult:
        """`exact_match`, and `valid_json` and `f1` where the reference is a JSON object, as `fledge score` has them."""
        question = self.questions[number]
        marked = mark(question.answered(answer.text, answer.finish_reason))
        values = {"exact_match": float(marked.kind == RIGHT)}
        if marked.valid_json is not None:
            values |= {"valid_json": float(marked.valid_json), "f1": answer_f1(marked)}
        return ItemResult(
            id=self.ids[number],
            group=question.group,
            prompt=question.question,
            expected=question.expected,
            given=answer.text,
            finish_reason=answer.finish_reason,
            values=values,
            failures=() if marked.kind == RIGHT else (marked.kind, *marked.details),
        )


# -- prompts -----------------------------------------------------------------------------------------------------------------


class PromptSet(GeneratedSet):
    """Prompts with rules for the answers, as prompt tests have them, in groups by what they look at (`dimension`)."""

    def __init__(self, name: str, config: EvaluationSetConfig, key: str) -> None:
        self.cases: list[Case] = spread(load_cases(Path(str(config.path))), config.max_samples)
        super().__init__(name, config, item_ids([case.model_dump(mode="json") for case in self.cases]))

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

    def __init__(self, name: str, config: EvaluationSetConfig, key: str) -> None:
        roles = {"answer": "answer", "group": "group", **config.columns}
        self._pattern = None if config.extract is None else re.compile(config.extract)
        self.stop = () if config.chat else config.stop

        def parse(file: str, where: str, row: Any) -> _Task:
            answer = text_of(row, roles["answer"])
            expected = self._extracted(answer)
            if expected is None:
                raise RowError("extract finds nothing in the right answer")
            return _Task(where, filled(config.template, row), answer, expected, group_of(row, roles["group"]))

        needed = f"a row has the column {roles['answer']}, in which extract finds the answer, and those that template names"
        items, notes = read_items(Source(path=config.path), key, parse, needed)
        self.items = spread(items, config.max_samples)
        ids = item_ids([[one.prompt, one.expected] for one in self.items])
        solved = [Solved(one.prompt, one.answer) for one in self.items]
        self._few_shot = FewShot.of(config, key, solved, lambda row: Solved(*_prompt_and_answer(parse("", "", row))))
        super().__init__(name, config, ids, [*(f"left out: {one}" for one in notes), *self._few_shot.notes])
        self.fingerprint = self._few_shot.joined(self.fingerprint)

    @property
    def places(self) -> list[str]:
        """The file and line of each row."""
        return [item.where for item in self.items]

    def prompts(self, tokenizer: Tokenizer) -> list[list[int]]:
        """The solved rows and the question, behind the tokens that the tokenizer puts before a text."""
        if self.config.chat:
            return [self._few_shot.chat_prompt(tokenizer, number, one.prompt) for number, one in enumerate(self.items)]
        contexts = (self._few_shot.context(number, one.prompt) for number, one in enumerate(self.items))
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


def _prompt_and_answer(task: _Task) -> tuple[str, str]:
    return task.prompt, task.answer


def plain_answer(text: str) -> str:
    """An answer as it is compared: in lower case, without commas, dollar signs, a full stop at its end and white space around
    it, as lm-eval compares the answers of GSM8K."""
    return re.sub(r"[,$]", "", text).strip().removesuffix(".").casefold().strip()

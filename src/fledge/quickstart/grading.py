"""Grades of a model's answers to the held-out questions of the closed world."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fledge.evaluate import chat_batch
from fledge.evaluate.intervals import wilson_interval
from fledge.generation import Engine, SamplingParams
from fledge.model.protocol import LanguageModel
from fledge.tokenizer import Message, Tokenizer
from fledge.world import Question, correct, correct_content, habits


@dataclass(frozen=True)
class Grade:
    """The grade of one answer: right in content and form (`exact`), right in content, showing a bad habit."""

    task: str
    exact: bool
    content: bool
    habit: bool


def grade_answers(model: LanguageModel, tokenizer: Tokenizer, questions: Sequence[Question]) -> dict[str, Any]:
    """Grade greedy answers: rates over all questions and by task, and the answers whose content is wrong, as JSON values."""
    conversations = [[Message(turn["role"], turn["content"]) for turn in question.messages] for question in questions]
    engine, params = Engine(model, tokenizer.stop_ids), SamplingParams(max_new_tokens=96)
    answers = [answer.text for answer in chat_batch(engine, tokenizer, conversations, params)]
    grades = [
        Grade(question.task, correct(question, text), correct_content(question, text), bool(habits(question, text)))
        for question, text in zip(questions, answers, strict=True)
    ]
    errors = [
        {
            "task": question.task,
            "question": question.messages[-1]["content"],
            "answer": text,
            "reference": question.reference,
        }
        for question, text, grade in zip(questions, answers, grades, strict=True)
        if not grade.content
    ]
    tasks = dict.fromkeys(grade.task for grade in grades)
    by_task = {task: _rates([grade for grade in grades if grade.task == task]) for task in tasks}
    return {**_rates(grades), "tasks": by_task, "errors": errors}


def describe_grades(stage: str, grades: dict[str, Any]) -> str:
    """The rates on two lines, for the console."""
    tasks = ", ".join(f"{task} {rates['content_match']:.0%}" for task, rates in grades["tasks"].items())
    return (
        f"{stage}: {grades['n']} held-out questions: exact match {grades['exact_match']:.1%}, right apart from habits "
        f"{grades['content_match']:.1%}, bad habits in {grades['habit_rate']:.1%} of answers\n  {tasks}"
    )


def _rates(grades: Sequence[Grade]) -> dict[str, Any]:
    count, exact = len(grades), sum(grade.exact for grade in grades)
    return {
        "n": count,
        "exact_match": exact / count,
        "content_match": sum(grade.content for grade in grades) / count,
        "habit_rate": sum(grade.habit for grade in grades) / count,
        "interval": wilson_interval(exact, count),
    }

"""Answers that a model generates to the questions of validation rows, scored against the rows' own answers."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from fledge.data import PackedDataset
from fledge.data.encoding.questions import split_last_answer
from fledge.data.storage import Examples
from fledge.errors import FledgeError
from fledge.evaluate.answers import JSON_SCORES, AnsweredRow, is_object, mark, summary_scores
from fledge.evaluate.bleu import BleuScore, bleu_tokenization, corpus_bleu, corpus_chrf
from fledge.evaluate.evenly import evenly
from fledge.evaluate.last_turn import LastTurn
from fledge.evaluate.metrics import Answer, measure_answers, measure_set, needs_gain, with_gains
from fledge.evaluate.metrics.overlap import rouge_signature
from fledge.generation import Completion, Engine, SamplingParams
from fledge.metric_names import ALWAYS
from fledge.model.protocol import LanguageModel
from fledge.recipe.schema import GeneratedAnswersConfig
from fledge.tokenizer import Tokenizer
from fledge.training.rollout import DrawnAnswer, RewardTable


@dataclass(frozen=True)
class Question:
    """The tokens up to a row's last answer, the user's last text in them (empty where no metric reads it), and that answer."""

    prompt: list[int]
    text: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class GeneratedAnswers:
    """Questions from validation rows, and how they are answered. `skipped`: rows whose last answer was cut to fit the context,
    or that have none. `bleu`: the tokenization of BLEU; None: it is not computed. `metrics`: further ones, of
    `evaluate.metrics`. `rewards`: that a stage trains on."""

    questions: tuple[Question, ...]
    skipped: int
    tokenizer: Tokenizer
    max_new_tokens: int
    bleu: str | None = None
    metrics: tuple[str, ...] = ()
    rewards: RewardTable | None = None

    @classmethod
    def of(
        cls,
        validation: PackedDataset,
        tokenizer: Tokenizer,
        config: GeneratedAnswersConfig,
        metric: str,
        rewards: RewardTable | None = None,
    ) -> "GeneratedAnswers":
        """The questions of `config.rows` rows, spread evenly over the validation data, or of all if there are fewer.

        Raises FledgeError if no row has a whole answer, or if `metric` is a score that their answers do not have."""
        examples = validation.examples
        numbers = evenly(examples.count, config.rows)
        found = [last_question(examples, number, tokenizer.stop_ids) for number in numbers]
        last_turn = LastTurn.of(tokenizer) if config.metrics else None
        questions = tuple(
            Question(prompt, last_turn.text(prompt) if last_turn else "", tokenizer.decode(answer, skip_special=True))
            for prompt, answer in (one for one in found if one is not None)
        )
        if not questions:
            raise FledgeError(
                f"none of {len(numbers):,} validation rows has a whole answer to compare with",
                where="evaluation.generated_answers",
                hint="they are cut at data.max_seq_len, or the chat template trains no token that ends an answer; "
                "make max_seq_len larger, or leave generated_answers out",
            )
        if metric in JSON_SCORES and not any(is_object(question.answer) for question in questions):
            raise FledgeError(
                f"no answer of {len(questions):,} validation rows is a JSON object, which {metric} compares",
                where="metric_for_best_model",
                hint="set it to exact_match or loss",
            )
        requested = config.bleu or ("auto" if "bleu" in config.metrics else None)
        bleu = requested and bleu_tokenization(requested, [question.answer for question in questions])
        return cls(
            questions=questions,
            skipped=len(numbers) - len(questions),
            tokenizer=tokenizer,
            max_new_tokens=config.max_new_tokens,
            bleu=bleu,
            metrics=tuple(name for name in config.metrics if name not in (*ALWAYS, "bleu")),
            rewards=rewards,
        )

    def describe(self) -> str:
        """A sentence for the console."""
        skipped = f", {self.skipped:,} rows skipped: their last answer is cut or missing" if self.skipped else ""
        scored = f" and scored by {', '.join(self.metrics)}" if self.metrics else ""
        again = "; off_topic reads each answer five times more" if needs_gain(self.metrics) else ""
        return (
            f"answers are generated to {len(self.questions):,} validation questions at each evaluation{scored}{skipped}{again}"
        )

    def score(self, model: LanguageModel) -> dict[str, float]:
        """Scores of the model's greedy answers: `exact_match`, and `valid_json` and `f1` where the rows' answers are JSON
        objects (see `evaluate.answers`); `bleu` (0 to 100) and the further metrics that are asked for, where they apply to an
        answer; and, of a stage with rewards, the mean `reward` and that of each."""
        engine = Engine(model, self.tokenizer.stop_ids)
        completions = engine.generate(
            [question.prompt for question in self.questions], SamplingParams(max_new_tokens=self.max_new_tokens)
        )
        rows = [
            AnsweredRow(
                where="",
                question="",
                expected=question.answer,
                given=self.tokenizer.decode(completion.tokens, skip_special=True),
                finish_reason=completion.finish_reason,
            )
            for question, completion in zip(self.questions, completions, strict=True)
        ]
        scores = summary_scores([mark(row) for row in rows])
        if self.bleu is not None:
            scores["bleu"] = self._bleu([row.given for row in rows]).value
        return scores | self._further(model, completions, rows) | self._rewards(completions)

    def _further(
        self, model: LanguageModel, completions: Sequence[Completion], rows: Sequence[AnsweredRow]
    ) -> dict[str, float]:
        """The values of `metrics`."""
        if not self.metrics:
            return {}
        given = [
            Answer(prompt=one.text, given=row.given, expected=one.answer, finish_reason=row.finish_reason)
            for one, row in zip(self.questions, rows, strict=True)
        ]
        if needs_gain(self.metrics):
            prompts, answers = [one.prompt for one in self.questions], [one.tokens for one in completions]
            given = with_gains(given, model, self.tokenizer, prompts, answers)
        return {name: one.value for name, one in measure_set(self.metrics, given, measure_answers(self.metrics, given)).items()}

    def _rewards(self, completions: Sequence[Completion]) -> dict[str, float]:
        if self.rewards is None:
            return {}
        drawn = [
            DrawnAnswer.of(question.prompt, completion, question.answer, self.tokenizer)
            for question, completion in zip(self.questions, completions, strict=True)
        ]
        values = self.rewards.score(drawn)
        means = {f"rewards/{name}": float(mean) for name, mean in zip(self.rewards.names, values.mean(axis=0), strict=True)}
        return {"reward": float(self.rewards.total(values).mean()), **means}

    def signatures(self) -> dict[str, str]:
        """How scores are computed that depend on settings of a library."""
        references = [one.answer for one in self.questions]
        found = {} if self.bleu is None else {"bleu_signature": self._bleu(references).signature}
        if "chrf" in self.metrics:
            found["chrf_signature"] = corpus_chrf(references, references).signature
        return found | {f"{name}_signature": rouge_signature(name) for name in self.metrics if name.startswith("rouge")}

    def _bleu(self, given: Sequence[str]) -> BleuScore:
        return corpus_bleu(given, [question.answer for question in self.questions], self.bleu or "none")


def last_question(examples: Examples, number: int, stop_ids: Collection[int]) -> tuple[list[int], list[int]] | None:
    """(prompt, answer) of the last answer in an example, as tokens; of its first sequence, the chosen answer of a pair. The
    answer is without its stop token. None if no answer ends with one."""
    found = split_last_answer(*examples.sequence(number * examples.sequences_per_example), stop_ids)
    return None if found is None else (found[0].tolist(), found[1].tolist())

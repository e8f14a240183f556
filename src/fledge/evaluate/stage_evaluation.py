"""The evaluation of a stage: metrics on validation data, generated answers, samples, prompt tests and evaluation sets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledge.autotune.determinism import allow_nondeterministic
from fledge.checkpoint.find import step_name
from fledge.distributed.context import DistributedContext
from fledge.errors import FledgeError
from fledge.evaluate.error_cases import WorstRow, loss_cases, rule_cases, worst_rows, write_error_cases
from fledge.evaluate.generated import GeneratedAnswers
from fledge.evaluate.prompt_tests import Case, run_cases, write_failing
from fledge.evaluate.records import AFTER, SetResult
from fledge.evaluate.samples import sample
from fledge.evaluate.sets.in_stage import StageSets
from fledge.generation import SamplingParams
from fledge.model.eager import force_eager
from fledge.model.protocol import LanguageModel
from fledge.recipe.schema import GenerationSamplesConfig, Stage
from fledge.run import Console, StageDirectory, write_json
from fledge.run.file_shapes import Evaluation as SavedEvaluation
from fledge.run.text_files import read_json
from fledge.tokenizer import Tokenizer
from fledge.training.hooks import Evaluation, EvaluationSets, Hook, PromptTests
from fledge.training.validation import ValidationSet, metrics_line, validate


@dataclass(frozen=True, kw_only=True)
class StageEvaluation:
    """What a stage is evaluated with, before, while and after it trains.

    `validation`: None without validation data. `answers`: of validation rows, if the recipe asks for them. `cases`: of the
    prompt tests. `sets`: evaluation sets. `locate`: file and line of a validation example. Ranks other than the main process
    only take part in the metrics.
    """

    stage: Stage
    tokenizer: Tokenizer
    samples: GenerationSamplesConfig
    validation: ValidationSet | None
    answers: GeneratedAnswers | None
    cases: Sequence[Case]
    sets: StageSets
    directory: StageDirectory
    console: Console
    ranks: DistributedContext
    locate: Callable[[int], str] = str

    def evaluate(self, file: Path, model: LanguageModel, micro_batch_rows: int) -> list[SetResult]:
        """Write the metrics on validation data and the answers to the fixed prompts to `file`, and the results of evaluation
        sets, which are returned, to the folder of its name."""
        metrics: dict[str, Any] = {}
        if self.validation is not None:
            metrics = validate(model, self.validation, micro_batch_rows, ranks=self.ranks, with_distribution=True)
        rows = self._worst_rows(model, micro_batch_rows) if file.stem == AFTER else []
        if not self.ranks.is_main_process:
            return []
        with force_eager(), allow_nondeterministic():
            if self.answers is not None:
                metrics |= {**self.answers.score(model), **self.answers.signatures()}
            samples = sample(model, self.tokenizer, self.samples, self.stage.kind)
            results = self.sets.evaluate(model, file.stem)
        if metrics:
            self.console.log(f"{file.stem} {self.directory.root.name}: validation {metrics_line(metrics)}")
        write_json(file, {**metrics, "samples": [one.as_dict() for one in samples]})
        if file.stem == AFTER:
            self._write_error_cases(rows, results)
        return results

    def _worst_rows(self, model: LanguageModel, micro_batch_rows: int) -> list[WorstRow]:
        """The validation rows with the highest losses; none for a stage that draws its answers itself. Collective."""
        if self.validation is None or self.stage.answers_per_example > 1:
            return []
        return worst_rows(model, self.validation, micro_batch_rows, self.ranks)

    def _write_error_cases(self, rows: Sequence[WorstRow], results: Sequence[SetResult]) -> None:
        """Write `eval/errors.jsonl`. It is for people to read: where it cannot be written, a warning says so."""
        cases = [] if self.validation is None else loss_cases(rows, self.validation, self.tokenizer, self.locate)
        cases += rule_cases(results)
        try:
            if cases:
                write_error_cases(self.directory.evaluations / "errors.jsonl", cases)
        except (FledgeError, OSError) as error:
            self.console.log(f"warning: the error cases are not written: {error}", style="yellow")

    def _initial_metrics(self) -> dict[str, Any]:
        """The metrics before the first step, equal on all ranks."""
        file = self.directory.evaluations / "before.json"
        return self.ranks.broadcast_object(dict(read_json(file, SavedEvaluation)) if self.ranks.is_main_process else None)

    def hooks(self, total_steps: int) -> tuple[Hook, ...]:
        """The hooks of the trainer: evaluation if there are validation data, prompt tests if the recipe has some. All ranks
        call it, after the evaluation before the first step is written."""
        initial = self._initial_metrics()
        hooks: list[Hook] = []
        if self.validation is not None:
            hooks.append(
                Evaluation(
                    stage=self.stage,
                    total_steps=total_steps,
                    validation=self.validation,
                    score_answers=None if self.answers is None else self._score_answers,
                    initial=initial,
                )
            )
        if self.stage.prompt_tests is not None:
            every_steps = self.stage.prompt_tests.every_steps
            hooks.append(PromptTests(run_tests=self._run_prompt_tests, every_steps=every_steps, total_steps=total_steps))
        intervals = {name: one.every_steps for name, one in self.stage.evaluation.sets.items() if one.every_steps is not None}
        if intervals:
            hooks.append(EvaluationSets(run_sets=self._run_sets, every_steps=intervals))
        self.sets.tell_changes()
        return tuple(hooks)

    def _score_answers(self, model: LanguageModel) -> dict[str, float]:
        assert self.answers is not None
        with force_eager(), allow_nondeterministic():
            return self.answers.score(model)

    def _run_sets(self, model: LanguageModel, step: int, names: Sequence[str]) -> dict[str, float]:
        with force_eager(), allow_nondeterministic():
            return self.sets.evaluate_at(model, step, names)

    def _run_prompt_tests(
        self, model: LanguageModel, step: int, previous_failures: list[str] | None
    ) -> tuple[dict[str, Any], list[str]]:
        """Run the prompt tests; returns their metrics and the names of failing ones, written to `prompt_tests/step-….jsonl`."""
        config = self.stage.prompt_tests
        assert config is not None
        params = SamplingParams(max_new_tokens=config.max_new_tokens)
        with force_eager(), allow_nondeterministic():
            report = run_cases(model, self.tokenizer, self.cases, params, previous_failures)
        try:
            write_failing(report.results, self.directory.prompt_tests / f"{step_name(step)}.jsonl")
        except FledgeError as error:  # the file is for people to read; what was learned is worth more
            self.console.log(f"warning: the failing prompt tests are not written: {error.what} ({error.where})", style="yellow")
        return report.metrics(), report.failing

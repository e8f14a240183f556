"""Evaluation sets of a recipe: what a model is asked before, during and after a stage."""

import re
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from fledge.recipe.sections.base import ConfigModel, PathText, Pattern, Positive

SetKind = Literal["answers", "prompts", "text", "minimal_pairs", "multiple_choice", "generation", "lm_eval"]
SET_KINDS: tuple[SetKind, ...] = get_args(SetKind)
IN_TURNS: tuple[SetKind, ...] = ("answers", "prompts")  # asked through the chat template
FIELD = re.compile(r"\{([^{}\n]+)\}")  # of a template
DEFAULT_STOP = ("\n\n", "Question:")
OF_ALL_KINDS = ("kind", "path", "every_steps", "max_samples")
KEYS: dict[SetKind, tuple[str, ...]] = {  # the further keys that a kind reads
    "answers": ("columns", "max_new_tokens", "metrics"),
    "prompts": ("max_new_tokens", "metrics"),
    "text": ("columns",),
    "minimal_pairs": ("columns",),
    "multiple_choice": ("columns", "template", "few_shot", "few_shot_path", "chat"),
    "generation": ("columns", "template", "few_shot", "few_shot_path", "chat", "max_new_tokens", "stop", "extract", "metrics"),
    "lm_eval": ("task", "few_shot"),
}
ROLES: dict[SetKind, tuple[str, ...]] = {  # what `columns` may name; None of a kind: the roles of a source
    "minimal_pairs": ("good", "bad", "group"),
    "multiple_choice": ("choices", "label", "group"),
    "generation": ("answer", "group"),
}


class EvaluationSetConfig(ConfigModel):
    """An evaluation set; which keys it reads depends on its kind. See docs/evaluation.md."""

    kind: SetKind
    path: PathText | None = Field(
        default=None,
        description="file, folder or glob of rows; of prompts: the YAML file; of lm_eval: a folder of task files, or null",
    )
    every_steps: Positive | None = Field(
        default=None, description="steps between evaluations while the stage trains; null: only before and after it"
    )
    max_samples: Positive | None = Field(
        default=None, description="items to use, at most, spread evenly over all of them; of lm_eval: the first ones"
    )
    columns: dict[str, str] = Field(
        default={}, description="names of the columns that hold a role, such as {good: sentence_a, group: phenomenon}"
    )
    max_new_tokens: Positive = Field(default=128, description="tokens of an answer, at most")
    metrics: list[str] = Field(default=[], description="further metrics of the answers, such as bleu, chrf, rouge_l")
    template: str = Field(
        default="Question: {question}\nAnswer:", description="the prompt of a row; {NAME} stands for the value of its column"
    )
    few_shot: Annotated[int, Field(ge=0)] = Field(default=0, description="solved rows before the question")
    few_shot_path: PathText | None = Field(
        default=None, description="rows to solve before the question, the first ones of it; null: other rows of the set"
    )
    chat: bool = Field(default=False, description="the prompt is a user's turn of the chat template")
    stop: list[str] | None = Field(
        default=None,
        description="texts that end an answer and do not belong to it; null: an empty line and 'Question:', with chat none",
    )
    extract: Pattern | None = Field(
        default=None,
        description="the answer is the first match of this regular expression, or its first group; null: all of the text",
    )
    task: str | None = Field(default=None, description="name of a task of lm-eval")

    @property
    def uses_chat_template(self) -> bool:
        """Whether its items are asked as turns of a conversation."""
        return self.kind in IN_TURNS or self.chat

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """The texts that end an answer: `stop`, or where it is not set those of a prompt that is no turn of a conversation."""
        if self.stop is not None:
            return tuple(self.stop)
        return () if self.chat else DEFAULT_STOP

    @model_validator(mode="after")
    def _check_keys(self) -> "EvaluationSetConfig":
        known = (*OF_ALL_KINDS, *KEYS[self.kind])
        changed = (name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default)
        if foreign := sorted(set(changed) - set(known)):
            kinds = ", ".join(kind for kind in SET_KINDS if foreign[0] in KEYS[kind])
            raise ValueError(f"{foreign[0]} belongs to sets of kind {kinds}: a set of kind {self.kind} does not read it")
        if self.kind == "lm_eval":
            if self.task is None:
                raise ValueError("a set of kind lm_eval needs task, the name of a task of lm-eval")
        elif self.path is None:
            raise ValueError(f"a set of kind {self.kind} needs path, a file of its items")
        if self.few_shot_path is not None and not self.few_shot:
            raise ValueError("few_shot_path needs few_shot, the number of solved rows")
        roles = ROLES.get(self.kind)
        if roles and (unknown := sorted(set(self.columns) - set(roles))):
            raise ValueError(f"columns: a set of kind {self.kind} has the roles {', '.join(roles)}, not '{unknown[0]}'")
        if "template" in KEYS[self.kind] and not FIELD.search(self.template):
            raise ValueError("template: it names no column, so every row would be asked the same; write {NAME} for a column")
        if any(not text for text in self.stop or ()):
            raise ValueError("stop: an empty text would end every answer at once")
        return self

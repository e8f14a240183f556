"""Rules that an answer keeps or breaks: each a pure function of the answer."""

import difflib
import json
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from fledge.data.cleaning.languages import LANGUAGES, detect_language
from fledge.errors import missing_extra
from fledge.recipe.sections.base import ConfigModel, Positive

REFUSALS = re.compile(
    r"\b(i'?m sorry|i am sorry|i apologi[sz]e|i can(no|')t|i am (not able|unable)|i'?m (not able|unable)|as an ai)\b"
    r"|对不起|抱歉|我(不能|无法|没办法|没法)|作为(一个|一名)?(ai|人工智能|语言模型)",
    re.IGNORECASE,
)
OPENING = 200  # characters of an answer in which a refusal is looked for
NGRAM = 4  # pieces whose repetition is counted


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from None
    return text


def _language(name: str) -> str:
    if name not in LANGUAGES:
        raise ValueError(f"'{name}' is not known here (there are {', '.join(LANGUAGES)})")
    return name


class LengthRule(ConfigModel):
    """Characters of the answer."""

    min: Annotated[int, Field(ge=0)] = 0
    max: Positive | None = None


class Rules(ConfigModel):
    """What an answer must be like; all that is named must hold. Texts are compared without the white space around them."""

    contains: list[str] = Field(default=[], description="every one of these")
    contains_any: list[str] = Field(default=[], description="at least one of these")
    lacks: list[str] = Field(default=[], description="none of these")
    regex: Annotated[str, AfterValidator(_pattern)] | None = Field(default=None, description="found somewhere in the answer")
    exact: list[str] = Field(default=[], description="the answer is one of these")
    json_schema: dict[str, Any] | None = Field(default=None, description="the answer is JSON that this schema describes")
    not_refusal: Literal[True] | None = None
    max_repetition: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="largest share of repeated pieces; see `repetition`"
    )
    language: Annotated[str, AfterValidator(_language)] | None = None
    length: LengthRule | None = None
    ends: Literal[True] | None = Field(default=None, description="the model ends the answer by itself")
    reference: list[str] = Field(default=[], description="the answer resembles one of these")
    at_least: Annotated[float, Field(gt=0, le=1)] = Field(default=0.6, description="how much it resembles them")

    @model_validator(mode="after")
    def _something(self) -> "Rules":
        if not self.model_fields_set - {"at_least"}:
            raise ValueError("no rule: say what the answer must be like")
        if "at_least" in self.model_fields_set and not self.reference:
            raise ValueError("at_least belongs to reference")
        return self

    def broken(self, answer: str, ended: bool) -> list[str]:
        """The rules that an answer breaks, each with what was found."""
        text = answer.strip()
        found = [f"lacks {part!r}" for part in self.contains if part not in text]
        found += [f"contains {part!r}" for part in self.lacks if part in text]
        if self.contains_any and not any(part in text for part in self.contains_any):
            found.append(f"contains none of {self.contains_any}")
        if self.regex is not None and re.search(self.regex, text) is None:
            found.append(f"does not match {self.regex!r}")
        if self.exact and text not in [one.strip() for one in self.exact]:
            found.append(f"is not {' or '.join(map(repr, self.exact))}")
        if self.not_refusal and REFUSALS.search(text[:OPENING]):
            found.append("refuses")
        if self.ends and not ended:
            found.append("does not end by itself")
        return found + self._measured(text)

    def _measured(self, text: str) -> list[str]:
        found = []
        if self.json_schema is not None and (problem := _against_schema(text, self.json_schema)):
            found.append(problem)
        if self.max_repetition is not None and (share := repetition(text)) > self.max_repetition:
            found.append(f"repeats itself: {share:.2f} is above {self.max_repetition:g}")
        if self.language is not None and (language := detect_language(text)) != self.language:
            found.append(f"is {language}, not {self.language}")
        if self.length is not None and not self.length.min <= len(text) <= (self.length.max or len(text)):
            found.append(f"has {len(text)} characters")
        if self.reference and (best := max(resemblance(text, one) for one in self.reference)) < self.at_least:
            found.append(f"resembles the reference by {best:.2f}, less than {self.at_least:g}")
        return found


def split_units(text: str) -> list[str]:
    """Words of Latin text, single characters of Chinese and the like, punctuation marks."""
    return re.findall(r"[^\W\u2e80-\u9fff\uac00-\ud7af]+|[\u2e80-\u9fff\uac00-\ud7af]|[^\w\s]", text.lower())


def repetition(text: str) -> float:
    """Share of n-grams of four pieces that were there before (rep-n: 1 − distinct ÷ all, Welleck et al. 2020); 0 for fewer
    than two of them."""
    parts = split_units(text)
    grams = [tuple(parts[i : i + NGRAM]) for i in range(len(parts) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else 0.0


def resemblance(one: str, other: str) -> float:
    """Twice the pieces in matching runs ÷ the pieces of both (Ratcliff & Obershelp 1988): 1 is equal, 0 has nothing in
    common."""
    return difflib.SequenceMatcher(None, split_units(one), split_units(other), autojunk=False).ratio()


def _against_schema(text: str, schema: dict[str, Any]) -> str | None:
    try:
        import jsonschema
    except ImportError:
        raise missing_extra("jsonschema", "eval", "checking answers against a JSON schema") from None
    try:
        jsonschema.validate(json.loads(text), schema)
    except ValueError as error:
        return f"is no JSON: {error}"
    except jsonschema.ValidationError as error:
        return f"does not fit its schema: {error.message}"
    return None

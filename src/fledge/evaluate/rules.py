"""Rules for answers: each is a pure function of the answer."""

import json
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from fledge.data.cleaning.languages import LANGUAGES, detect_language
from fledge.errors import FledgeError, first_line, missing_extra
from fledge.evaluate.metrics.overlap import resemblance
from fledge.evaluate.metrics.refusal import answer_kind
from fledge.evaluate.metrics.repetition import repetition
from fledge.evaluate.time_limit import cpu_time_limit
from fledge.recipe.sections.base import ConfigModel, Pattern, Positive

CHECK_SECONDS = 5.0  # of computing, for all rules of one answer; a usual check takes less than a millisecond


def _check_language(name: str) -> str:
    if name not in LANGUAGES:
        raise ValueError(f"'{name}' is not a known language (known are {', '.join(LANGUAGES)})")
    return name


class LengthRule(ConfigModel):
    """Bounds for the number of characters of the answer."""

    min: Annotated[int, Field(ge=0)] = 0
    max: Positive | None = None


class Rules(ConfigModel):
    """The rules for an answer; every given rule must hold. Texts are compared without surrounding white space."""

    contains: list[str] = Field(default=[], description="every one of these")
    contains_any: list[str] = Field(default=[], description="at least one of these")
    lacks: list[str] = Field(default=[], description="none of these")
    regex: Pattern | None = Field(default=None, description="matches somewhere in the answer")
    exact: list[str] = Field(default=[], description="the answer is one of these")
    json_schema: dict[str, Any] | None = Field(default=None, description="the answer is JSON that fits this schema")
    not_refusal: Literal[True] | None = None
    max_repetition: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="largest share of repeated n-grams; see `repetition`"
    )
    language: Annotated[str, AfterValidator(_check_language)] | None = None
    length: LengthRule | None = None
    ends: Literal[True] | None = Field(default=None, description="the model ends the answer by itself")
    reference: list[str] = Field(default=[], description="the answer resembles one of these")
    at_least: Annotated[float, Field(gt=0, le=1)] = Field(default=0.6, description="the least resemblance to one of them")

    @model_validator(mode="after")
    def _check_not_empty(self) -> "Rules":
        if not self.model_fields_set - {"at_least"}:
            raise ValueError("there is no rule: give at least one")
        if "at_least" in self.model_fields_set and not self.reference:
            raise ValueError("at_least needs reference")
        return self

    def violations(self, answer: str, ended: bool) -> list[str]:
        """The rules that an answer violates, each with what was found. `ended`: the model ended the answer by itself.

        Rules that take longer than CHECK_SECONDS are violated: some regular expressions would search for years.
        """
        try:
            with cpu_time_limit(CHECK_SECONDS):
                return self._violations(answer.strip(), ended)
        except TimeoutError:
            named = [name for name in ("regex", "json_schema", "reference") if getattr(self, name)]
            return [f"could not be checked in {CHECK_SECONDS:g} s: simplify {' or '.join(named) or 'its rules'}"]

    def check(self) -> None:
        """Raise FledgeError, with the rule in `where`, for rules that cannot be applied to any answer."""
        if self.json_schema is not None:
            try:
                with cpu_time_limit(CHECK_SECONDS):
                    _check_schema(self.json_schema)
            except TimeoutError:
                raise FledgeError("it takes too long to check", where="json_schema", hint="simplify it") from None

    def _violations(self, text: str, ended: bool) -> list[str]:
        problems = [f"lacks {required!r}" for required in self.contains if required not in text]
        problems += [f"contains {forbidden!r}" for forbidden in self.lacks if forbidden in text]
        if self.contains_any and not any(option in text for option in self.contains_any):
            problems.append(f"contains none of {self.contains_any}")
        if self.regex is not None and re.search(self.regex, text) is None:
            problems.append(f"does not match {self.regex!r}")
        if self.exact and text not in [option.strip() for option in self.exact]:
            problems.append(f"is not {' or '.join(map(repr, self.exact))}")
        if self.not_refusal and answer_kind(text) == "refusal":
            problems.append("refuses")
        if self.ends and not ended:
            problems.append("does not end by itself")
        return problems + self._measured_violations(text)

    def _measured_violations(self, text: str) -> list[str]:
        problems = []
        if self.json_schema is not None and (problem := _schema_problem(text, self.json_schema)):
            problems.append(problem)
        if self.max_repetition is not None and (share := repetition(text)) > self.max_repetition:
            problems.append(f"repeats itself: {share:.2f} is above {self.max_repetition:g}")
        if self.language is not None and (language := detect_language(text)) != self.language:
            problems.append(f"is {language}, not {self.language}")
        if self.length is not None and not self.length.min <= len(text) <= (self.length.max or len(text)):
            problems.append(f"has {len(text)} characters")
        if self.reference and (best := max(resemblance(text, one) for one in self.reference)) < self.at_least:
            problems.append(f"resembles the reference by {best:.2f}, less than {self.at_least:g}")
        return problems


def _validator(schema: dict[str, Any]) -> Any:
    """A validator that loads nothing from elsewhere: `$ref` can name only what the schema itself holds."""
    try:
        from jsonschema import validators
        from referencing import Registry
    except ImportError:
        raise missing_extra("jsonschema", "eval", "checking answers against a JSON schema") from None
    kind = validators.validator_for(schema, default=validators.Draft202012Validator)  # type: ignore[attr-defined]
    return kind(schema, registry=Registry())


def _check_schema(schema: dict[str, Any]) -> None:
    """Raise FledgeError for a schema that is not valid, or that refers to what it does not hold."""
    validator = _validator(schema)
    from referencing import Registry, Resource
    from referencing.jsonschema import DRAFT202012

    try:
        type(validator).check_schema(schema)
        resource = Resource.from_contents(schema, default_specification=DRAFT202012)
        resolver = Registry().with_resource(resource.id() or "", resource).resolver(resource.id() or "")
        for name in _references(schema):
            resolver.lookup(name)
        validator.is_valid({})
    except Exception as error:  # of jsonschema and of referencing, without a common type; RecursionError
        raise FledgeError(f"not a usable JSON schema: {first_line(error)}", where="json_schema") from None


def _references(schema: Any) -> list[str]:
    """The values of all `$ref` in a schema, but not in parts that have an `$id` of their own."""
    if isinstance(schema, list):
        return [name for item in schema for name in _references(item)]
    if not isinstance(schema, dict):
        return []
    own = [schema["$ref"]] if isinstance(schema.get("$ref"), str) else []
    parts = [part for part in schema.values() if not (isinstance(part, dict) and "$id" in part)]
    return own + [name for part in parts for name in _references(part)]


def _schema_problem(text: str, schema: dict[str, Any]) -> str | None:
    from jsonschema.exceptions import best_match
    from referencing.exceptions import Unresolvable

    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"is not JSON: {first_line(error)}"
    try:
        problem = best_match(_validator(schema).iter_errors(value))
    except (RecursionError, Unresolvable) as error:
        return f"cannot be compared with its schema: {first_line(error)}"
    return None if problem is None else f"does not fit its schema: {problem.message}"

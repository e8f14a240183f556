"""Types that the sections of a recipe share."""

import os
import re
import unicodedata
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from fledge.recipe.mistyped import PUNCTUATION, bare
from fledge.recipe.units import fraction as as_fraction

Fraction = Annotated[float, Field(ge=0, lt=1)]
FractionOrPercent = Annotated[Fraction, BeforeValidator(as_fraction)]
Positive = Annotated[int, Field(gt=0)]
PathText = Annotated[str, AfterValidator(os.path.expanduser)]  # a leading ~ is the home directory


MAX_NAME_BYTES = 180  # so that `.NAME.lock` and the like are still names of files


def check_name(text: str) -> str:
    """The text, if it can be the name of a folder everywhere and a word on a command line; else a ValueError that says why.

    Letters and digits of all scripts are allowed.
    """
    allowed = all(unicodedata.category(character)[0] in "LMN" or character in "._-" for character in text)
    if not allowed or not text or unicodedata.category(text[0])[0] not in "LN":
        meant = bare(text)
        way = f": write {meant}" if meant not in ("", text) and PUNCTUATION.search(text) else ""
        raise ValueError(f"a name has letters, digits, '.', '_' and '-', and begins with a letter or a digit{way}")
    if len(text.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        raise ValueError(f"a name has at most {MAX_NAME_BYTES} bytes: {MAX_NAME_BYTES // 3} Chinese characters")
    return text


def _check_pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return text


Name = Annotated[str, AfterValidator(check_name)]
Pattern = Annotated[str, AfterValidator(_check_pattern)]  # a regular expression


class ConfigModel(BaseModel):
    """A section of the recipe: frozen; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def word_or_number(value: object) -> str:
    """The tag of a union of words and numbers: `word` or `number`."""
    return "word" if isinstance(value, str) and not value.isdigit() else "number"

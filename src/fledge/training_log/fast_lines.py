"""Lines of one form are read by what was understood of the first ones: a long log has few forms of lines."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fledge.training_log.line_grammar import LineFigures, read_line
from fledge.training_log.numbers import FACTORS, NUMBER, plain_number

TOKENS = re.compile(rf"({NUMBER})")
FACTOR_VALUES = tuple(dict.fromkeys((1.0, *(factor for _, factor in FACTORS.values()))))
CHECKED = 3  # lines of a form that are read in full, and must agree, before it is trusted
CHECK_EVERY = 50  # lines of a trusted form, one of which is read in full again
MOST_FORMS = 20_000
PARTS_OF_NUMBERS = ("+", "-", ".", ",", *map(str, range(10)))


@dataclass(kw_only=True)
class _Form:
    """A form of lines. `places`: column → which number of the line it is, and its factor; the factor is None while the number
    was always 0, of which it cannot be told. `agreed`: lines on which this and the full reading gave the same; `used`: lines
    that were read by it. `pattern`: matches lines of this form, with a group for each of its numbers; None until it is trusted,
    and where the text between numbers could be a part of one."""

    figures: LineFigures
    places: dict[str, tuple[int, float | None]] | None = None
    agreed: int = 0
    used: int = 0
    wrong: bool = False
    pattern: re.Pattern[str] | None = None


@dataclass
class LineReader:
    """Reads lines. `wanted`: plain names that the user gives → names of fledge. `failed` is set when a trusted form turns out
    to be wrong: then all lines are to be read again, with `fast` off."""

    wanted: Mapping[str, str] = field(default_factory=dict)
    fast: bool = True
    failed: bool = False
    _forms: dict[str, _Form] = field(default_factory=dict)
    _last: _Form | None = None

    def read(self, line: str) -> LineFigures:
        """The figures of a line, the same as `read_line` gives."""
        if not self.fast:
            return read_line(line, self.wanted)
        last = self._last
        if last is not None and last.pattern is not None and last.used % CHECK_EVERY:  # most lines are like the one before
            match = last.pattern.fullmatch(line)
            if match is not None and (found := _by_places(last, match.groups())) is not None:
                last.used += 1
                return found
        parts = TOKENS.split(line)
        key, tokens = "\x00".join(parts[::2]), parts[1::2]
        form = self._last = self._forms.get(key)
        if form is None:
            found = read_line(line, self.wanted)
            if len(self._forms) < MOST_FORMS:
                self._forms[key] = _Form(figures=found, places=_places(found, tokens))
            return found
        if form.wrong or form.places is None:
            return self._learn_again(form, line, tokens)
        fast = _by_places(form, tokens)
        if fast is None:
            return self._learn_again(form, line, tokens)
        if form.agreed >= CHECKED and form.used % CHECK_EVERY:
            form.used += 1
            return fast
        found = read_line(line, self.wanted)
        if fast == found:
            form.agreed += 1
            form.used += 1
            if form.agreed == CHECKED:
                form.pattern = _pattern(parts[::2])
        else:
            form.pattern = None
            self.failed |= form.agreed >= CHECKED
            form.wrong = True
        return found

    def _learn_again(self, form: _Form, line: str, tokens: list[str]) -> LineFigures:
        found = read_line(line, self.wanted)
        if not form.wrong:
            form.figures, form.places = found, _places(found, tokens)
        return found


def _pattern(texts: list[str]) -> re.Pattern[str] | None:
    """Matches what has these texts with a number between each two of them. None where a text ends like a part of a number."""
    if any(text.endswith(PARTS_OF_NUMBERS) for text in texts[:-1]):
        return None
    return re.compile(rf"((?>{NUMBER}))".join(map(re.escape, texts)))


def _places(found: LineFigures, tokens: list[str]) -> dict[str, tuple[int, float | None]] | None:
    """Which number of the line each figure is; None where that cannot be told from this line."""
    places: dict[str, tuple[int, float | None]] = {}
    numbers = [plain_number(token) for token in tokens]
    if numbers.count(0.0) > sum(values[0] == 0 for values in found.values.values()):
        return None  # a 0 that is no figure could be taken for one
    after = 0
    for name, values in found.values.items():
        counts, value = name.startswith("axis/"), values[0]
        if len(values) > 1:
            return None
        order = [*range(after, len(numbers)), *range(after)]
        factors = (1.0,) if counts or value == 0 else FACTOR_VALUES
        place = next(((at, factor) for factor in factors for at in order if _is(numbers[at], factor, value)), None)
        if place is None:
            return None
        places[name] = place if counts or value != 0 else (place[0], None)
        after = place[0] + 1
    return places


def _is(number: float | None, factor: float, value: float) -> bool:
    return number is not None and (number if factor == 1.0 else number * factor) == value


def _by_places(form: _Form, tokens: Sequence[str]) -> LineFigures | None:
    """The figures of a line of this form; None if a number is above 0 for the first time, so that its factor is not known."""
    assert form.places is not None
    values: dict[str, tuple[float, ...]] = {}
    for name, (at, factor) in form.places.items():
        token = tokens[at]
        number = float(token.replace(",", "") if "," in token else token)
        if factor is None and number != 0:
            return None
        values[name] = (number if factor is None or factor == 1.0 else number * factor,)
    figures = form.figures
    return LineFigures(values, figures.measures, figures.is_record, figures.missing)

"""The weight of a turn, a part of a turn, or a row in the loss, under the names that other tools use.

A value is a switch (true, false, 1, 0, also as text) or a weight (a number). Several values multiply.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fledge.data.parsing.columns import NOT_READ, Row, RowError
from fledge.tokenizer.template import Message

MIN_WEIGHT, MAX_WEIGHT = 1e-6, 1e6
WEIGHT_KEYS = ("weight", "loss_weight", "loss_scale")
SWITCH_KEYS = ("loss", "loss_mask", "step_loss_mask", "train", "trainable", "training")
TRAINED_KEYS = (*WEIGHT_KEYS, *SWITCH_KEYS)  # 1 and true: the turn is trained
MASKED = "masked"  # true: the turn is not trained
MASK = "mask"  # of either meaning
DETAIL_KEYS = ("train_detail", "training_detail")  # axolotl's: which characters of a turn are trained
LOSS_KEYS = frozenset((*TRAINED_KEYS, MASKED, MASK, *DETAIL_KEYS))
INSIDE = "weights inside a turn"
SWITCHES = {
    **dict.fromkeys(("true", "1", "1.0", "yes"), True),
    **dict.fromkeys(("false", "0", "0.0", "no"), False),
}


def read_switch(value: Any) -> bool | None:
    """A switch as files spell it: true, 1, "True", "yes", and their opposites; None for any other value."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return bool(value) if value in (0, 1) else None
    return SWITCHES.get(value.strip().lower()) if isinstance(value, str) else None


def _factor(value: Any, what: str) -> float:
    """The weight that a value stands for. RowError for a value that is neither a switch nor a weight."""
    switch = read_switch(value)
    if switch is not None:
        return float(switch)
    try:
        number = float(value) if isinstance(value, int | float | str) else None
    except (ValueError, OverflowError):
        number = None
    if number is None and not isinstance(value, int):
        raise RowError("wrong type", f"{what} is {type(value).__name__}, not a number, true or false: {str(value)[:40]!r}")
    if number is None or (number and not MIN_WEIGHT <= number <= MAX_WEIGHT):  # also excludes NaN; others are lost in float32
        raise RowError("wrong weight", f"{what} is {str(value)[:40]}")
    return number


def _product(values: Iterable[float]) -> float | None:
    product = None
    for value in values:
        product = value if product is None else product * value
    return product


def turn_weight(turn: Mapping[str, Any], role: str, number: int, row: Row) -> float | None:
    """The weight of a turn in the loss; None if nothing is said about it. Only answers may have one that is not 0."""
    if LOSS_KEYS.isdisjoint(turn) and not row.source.turns:
        return None
    if detail := next((key for key in DETAIL_KEYS if turn.get(key)), None):
        raise RowError(INSIDE, f"turn {number} has {detail}; a turn is trained as a whole or not at all")
    weight = _product(_turn_factors(turn, number, row))
    if weight and role != "assistant":
        raise RowError("wrong weight", f"turn {number} is {role} and has weight {weight:g}, but only answers are trained")
    return weight if role == "assistant" else None


def _turn_factors(turn: Mapping[str, Any], number: int, row: Row) -> list[float]:
    named = row.source.turns
    trained = (named["weight"],) if "weight" in named else TRAINED_KEYS
    hidden = [named.get("masked", MASKED)]
    if MASK in turn and MASK not in (*trained, *hidden) and turn[MASK] is not None:
        _check_mask(turn[MASK], number, row)
        hidden.append(MASK)
    factors = [_factor(turn[key], f"the {key} of turn {number}") for key in trained if turn.get(key) is not None]
    for key in hidden:
        if turn.get(key) is None:
            continue
        switch = read_switch(turn[key])
        if switch is None:
            raise RowError("wrong type", f"the {key} of turn {number} is neither true nor false: {str(turn[key])[:40]!r}")
        factors.append(float(not switch))
    return factors


def _check_mask(value: Any, number: int, row: Row) -> None:
    """RowError unless `mask` must mean that a turn is hidden from the loss: it is true or false, or marks a question too."""
    turns = row.conversation if isinstance(row.conversation, list) else ()
    questions = [turn for turn in turns if isinstance(turn, dict) and turn.get("role", turn.get("from")) in ("user", "human")]
    marks = [read_switch(turn[MASK]) for turn in questions if turn.get(MASK) is not None]
    if any(marks) or (not marks and isinstance(value, bool)):
        row.event("'mask' is read as: true hides a turn from the loss", "turns: {weight: mask} says that it means trained")
        return
    raise RowError(
        "mask of two meanings",
        f"turn {number} has mask {str(value)[:20]}; write turns: {{masked: mask}} if 1 hides a turn from the loss, "
        "turns: {weight: mask} if 1 means trained",
    )


def part_weight(parts: Sequence[Any], number: int, row: Row) -> float | None:
    """The weight that the content parts of a turn have in common; None without any. RowError if their weights differ."""
    weights = {_product(_turn_factors(part, number, row)) for part in parts if isinstance(part, dict)}
    if len(weights) > 1:
        raise RowError(INSIDE, f"the parts of turn {number} have different weights; a turn is trained as a whole or not at all")
    return next(iter(weights), None)


# -- rows ---------------------------------------------------------------------------------------------------------------


def row_weights(row: Row, count: int) -> list[float] | None:
    """The weights that the columns of a row give to its `count` turns; None if they say nothing.

    A column that the recipe names holds a weight, or a list with one for each turn. Of the columns with usual names, only
    switches and weights up to 1 are read, because a column `weight` may well be something else; others are noticed."""
    named = row.named("weight")
    weights: list[float] | None = None
    for name in row.usual("weight") if named is None else named:
        value = dict.get(row, name)
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        factors = _row_factors(value, name, count, by_recipe=named is not None)
        if factors is None:
            row.event(
                f"column '{name}' {NOT_READ} as a weight", f"{name}: {str(value)[:40]}; columns: {{weight: {name}}} reads it"
            )
            continue
        row.read.add(name)
        weights = factors if weights is None else [a * b for a, b in zip(weights, factors, strict=True)]
    if named is None and MASK in row:
        _read_mask(row)
    return weights


def _row_factors(value: Any, name: str, count: int, by_recipe: bool) -> list[float] | None:
    if isinstance(value, list):
        if not by_recipe and not all(read_switch(item) is not None for item in value):
            return None
        if len(value) != count:
            raise RowError("wrong weight", f"'{name}' has {len(value)} weights, the row {count} turns")
        return [_factor(item, f"'{name}'") for item in value]
    if by_recipe:
        return [_factor(value, f"'{name}'")] * count
    switch = read_switch(value)
    is_weight = isinstance(value, int | float) and 0 <= value <= 1 and name in WEIGHT_KEYS
    return [float(value if switch is None else switch)] * count if switch is not None or is_weight else None


def _read_mask(row: Row) -> None:
    """NeMo's column `mask` names the role that is not trained; only the user's can be left out as a whole."""
    value = dict.get(row, MASK)
    if isinstance(value, str) and value.strip().lower() in ("user", "human", "system"):
        row.read.add(MASK)
    elif value is not None and (read_switch(value) is not None or isinstance(value, list)):
        raise RowError(
            "mask of two meanings",
            f"the row has mask {str(value)[:20]}; write columns: {{weight: mask}} if 1 means trained, "
            "columns: {weight: ''} if it is no mask of the loss",
        )


def apply_row_weights(turns: Sequence[Message], row: Row) -> list[Message]:
    """The turns with the weights that the row's columns give them."""
    weights = row_weights(row, len(turns)) if row.usual("weight") or row.is_named("weight") or MASK in row else None
    if weights is None:
        return list(turns)
    return [_weighted(turn, weight) for turn, weight in zip(turns, weights, strict=True)]


def _weighted(turn: Message, weight: float) -> Message:
    if turn.role != "assistant":
        return turn
    return replace(turn, weight=weight if turn.weight is None else weight * turn.weight)

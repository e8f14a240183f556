"""The types that weights are written in. This module is imported by the command's parser, so it loads nothing heavy."""

from dataclasses import dataclass

from fledge.errors import FledgeError

BLOCK = 32  # weights of one row that share a scale, in all quantised types here


@dataclass(frozen=True, kw_only=True)
class WeightType:
    """A type of weights in files.

    `table`: the type of embedding and head, which suffer most from few bits. `tolerance`: largest mean
    difference of log-probabilities between fledge and llama.cpp, both computing with the weights of the file; llama.cpp rounds
    activations as it does weights, fledge computes in float32. `is_quantised`: `BLOCK` weights of a row share a scale.
    """

    name: str
    table: str
    tolerance: float
    is_quantised: bool = False

    @property
    def label(self) -> str:
        """The name as in GGUF files: F16, Q8_0, …"""
        return self.name.upper()


WEIGHT_TYPES = {
    kind.name: kind
    for kind in (
        WeightType(name="f32", table="f32", tolerance=0.0005),
        WeightType(name="f16", table="f16", tolerance=0.01),
        WeightType(name="bf16", table="bf16", tolerance=0.05),
        WeightType(name="q8_0", table="q8_0", tolerance=0.3, is_quantised=True),
        WeightType(name="q5_1", table="q8_0", tolerance=0.3, is_quantised=True),
        WeightType(name="q5_0", table="q8_0", tolerance=0.3, is_quantised=True),
        WeightType(name="q4_1", table="q8_0", tolerance=0.3, is_quantised=True),
        WeightType(name="q4_0", table="q8_0", tolerance=0.3, is_quantised=True),
    )
}


def chosen_type(name: str | None, allowed: tuple[str, ...]) -> WeightType:
    """The type with this name in any case (None: the first of `allowed`). Raises FledgeError for a name that is not allowed."""
    key = allowed[0] if name is None else name.lower()
    if key not in allowed:
        known = key in WEIGHT_TYPES
        what = f"the target has no type '{name}'" if known else f"there is no type '{name}'"
        raise FledgeError(what, where="--type", hint=f"the types of this target: {', '.join(allowed)}")
    return WEIGHT_TYPES[key]

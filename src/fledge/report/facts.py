"""The machine and the tokenizer as labelled facts, each number with its unit."""

from collections.abc import Mapping

from fledge.report import formatting
from fledge.report.read_run import mapping, number, text

UNIT_BY_KEY = {
    "cores": "cores",
    "threads": "threads",
    "vocab_size": "tokens",
    "bytes_per_token": "bytes/token",
    "vocabulary": "tokens",
    "batch_rows": "rows",
    "rows": "rows",
    "steps": "steps",
    "context": "tokens",
    "tokens": "tokens",
    "parameters": "parameters",
}


def facts(values: Mapping[str, object], prefix: str = "") -> list[tuple[str, str | None]]:
    """A nested mapping flattened into (label, text) pairs. The text is None for a key whose value is null or empty."""
    pairs: list[tuple[str, str | None]] = []
    for key, value in values.items():
        label = f"{prefix} · {label_of(key)}" if prefix else label_of(key)
        if isinstance(value, dict):
            pairs.extend(facts(mapping(value), label))
        else:
            pairs.append((label, format_fact(key, value)))
    return pairs


def label_of(key: str) -> str:
    """The key as words, without the unit at its end: `memory_bytes` gives `memory`."""
    words = key.replace("_", " ")
    for suffix in (" bytes", " seconds", " per second"):
        if words.endswith(suffix) and words != suffix.strip():
            return words.removesuffix(suffix) + (" rate" if suffix == " per second" else "")
    return words


def format_fact(key: str, value: object) -> str | None:
    """The value as text, with the unit that the key implies; None for null or empty text."""
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    amount = number(value)
    if amount is None:
        return ", ".join(text(item) for item in value) if isinstance(value, list) else text(value)
    return with_unit(key, amount)


def with_unit(key: str, amount: float) -> str:
    """A number with the unit that its key implies."""
    name = key.lower()
    if name in UNIT_BY_KEY:
        return f"{formatting.three_figures(amount) if '_per_' in name else formatting.whole(amount)} {UNIT_BY_KEY[name]}"
    if name.endswith("bytes"):
        return formatting.size(amount)
    if name.endswith("seconds"):
        return formatting.duration(amount) if amount >= 1 else f"{formatting.three_figures(amount * 1000)} ms"
    if name.endswith(("_ms", "milliseconds")):
        return f"{formatting.three_figures(amount)} ms"
    if name.endswith("_per_second"):
        return f"{formatting.compact(amount)} {name.removesuffix('_per_second').rpartition('_')[2]}/s"
    if name.endswith(("_share", "_rate", "accuracy", "_match")):
        return f"{formatting.percent(amount)} %"
    if name.endswith("_flops"):
        return f"{formatting.three_figures(amount / 1e9)} GFLOP/s"
    for unit, unit_text in (("tflops", "TFLOP/s"), ("gflops", "GFLOP/s"), ("gib", "GiB"), ("gb", "GB"), ("mb", "MB")):
        if name.endswith(unit):
            return f"{formatting.three_figures(amount)} {unit_text}"
    return formatting.whole(amount) if amount == amount and float(amount).is_integer() else formatting.three_figures(amount)

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
    """Flattened (label, spelled value) pairs; None stands for a value that is there but null."""
    pairs: list[tuple[str, str | None]] = []
    for key, value in values.items():
        label = f"{prefix} · {spaced(key)}" if prefix else spaced(key)
        if isinstance(value, dict):
            pairs.extend(facts(mapping(value), label))
        else:
            pairs.append((label, fact(key, value)))
    return pairs


def spaced(key: str) -> str:
    words = key.replace("_", " ")
    for suffix in (" bytes", " seconds", " per second"):
        if words.endswith(suffix) and words != suffix.strip():
            return words.removesuffix(suffix) + (" rate" if suffix == " per second" else "")
    return words


def fact(key: str, value: object) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    amount = number(value)
    if amount is None:
        return ", ".join(text(item) for item in value) if isinstance(value, list) else text(value)
    return with_unit(key, amount)


def with_unit(key: str, amount: float) -> str:
    name = key.lower()
    if name in UNIT_BY_KEY:
        return f"{formatting.three(amount) if '_per_' in name else formatting.whole(amount)} {UNIT_BY_KEY[name]}"
    if name.endswith("bytes"):
        return formatting.size(amount)
    if name.endswith("seconds"):
        return formatting.duration(amount) if amount >= 1 else f"{formatting.three(amount * 1000)} ms"
    if name.endswith(("_ms", "milliseconds")):
        return f"{formatting.three(amount)} ms"
    if name.endswith("_per_second"):
        return f"{formatting.compact(amount)} {name.removesuffix('_per_second').rpartition('_')[2]}/s"
    if name.endswith(("_share", "_rate", "accuracy", "_match")):
        return f"{formatting.percent(amount)} %"
    if name.endswith("_flops"):
        return f"{formatting.three(amount / 1e9)} GFLOP/s"
    for unit, spelled in (("tflops", "TFLOP/s"), ("gflops", "GFLOP/s"), ("gib", "GiB"), ("gb", "GB"), ("mb", "MB")):
        if name.endswith(unit):
            return f"{formatting.three(amount)} {spelled}"
    return formatting.whole(amount) if amount == amount and float(amount).is_integer() else formatting.three(amount)

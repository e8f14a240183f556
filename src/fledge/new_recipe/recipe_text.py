"""The text of a recipe: YAML with the reason for each setting beside it."""

import json
from collections.abc import Sequence
from typing import Any

import yaml

from fledge.data.formats import FORMATS
from fledge.localization import localized
from fledge.new_recipe.data_files import TRAINING, VALIDATION, DataFile, alike, path_of
from fledge.new_recipe.kinds import RULES
from fledge.new_recipe.sizes import Sizes, StageSizes

SAMPLES, SAMPLE_CHARACTERS = 3, 60
COMMENT_COLUMN = 52
TOP = "Token numbers are estimates from characters. All keys: docs/recipes.md. Time: aimed at {:g} minutes."


def recipe_text(
    name: str, kinds: dict[str, list[DataFile]], sizes: Sizes, command: str, minutes: float, notes: Sequence[str]
) -> str:
    """The recipe. `kinds`: kind of stage → its files, in the order of the stages. `command`: how to train it."""
    lines = [
        f"# {command}",
        *(f"# {_one_line(localized(line))}" for line in notes),
        f"# {localized(TOP.format(minutes))}",
        f"name: {_scalar(name)}",
        "seed: 1",
    ]
    lines += ["", *_model(sizes), "", "stages:"]
    for kind, files in kinds.items():
        lines += _stage(kind, files, sizes.stages[kind])
    return "\n".join([*lines, "", *_samples(kinds), ""])


def _commented(text: str, why: str) -> str:
    return f"{text.ljust(COMMENT_COLUMN)} # {_one_line(localized(why))}"


def _one_line(text: str) -> str:
    """A text as a comment can hold it: what ends a line or is no character of YAML is spelled out."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def _model(sizes: Sizes) -> list[str]:
    model, known = sizes.model, sizes.known_han
    pieces = "pieces of words, as many as the data can teach"
    shape = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    return [
        "tokenizer:",
        _commented(
            f"  vocab_size: {sizes.vocab_size}", f"{known:,} Chinese characters occur often enough" if known else pieces
        ),
        "",
        _commented("model:", f"{sizes.parameters / 1e6:.1f}M parameters: as many as the time and the data allow"),
        *(f"  {key}: {getattr(model, key)}" for key in shape),
        _commented(
            f"  max_position_embeddings: {model.max_position_embeddings}", "a conversation with its answer fits into it"
        ),
        "  qk_norm: true",
    ]


def _stage(kind: str, files: Sequence[DataFile], sizes: StageSizes) -> list[str]:
    rules = RULES[kind]
    lines = [
        f"  {rules.stage}:  # " + localized(f"{sizes.rows:,} {rules.what}, about {_short(sizes.tokens)} tokens"),
        *([f"    kind: {kind}"] if rules.stage != kind else []),
        "    data:",
        "      train:",
        *(f"        {line}" for line in _sources([file for file in files if file.purpose == TRAINING])),
        *_validation(files, sizes),
        _commented(f"      max_seq_len: {sizes.context}", _context_reason(kind, sizes)),
        _commented(f"    duration: {_number(sizes.passes)} epochs", _passes_reason(kind, sizes)),
        _commented(f"    batch: {{micro_batch_size: {sizes.micro_batch}}}", f"about {sizes.updates:,} updates"),
        _commented(
            f"    optimizer: {{name: {rules.optimizer}, learning_rate: auto}}",
            "from width, batch and length",
        ),
        "    schedule: {name: cosine, warmup: 5%, min_lr: 10%}",
        f"    evaluation: {{every_steps: {max(10, sizes.updates // 5)}}}",
    ]
    if sizes.learned_by_heart:
        lines.append(_commented("    select_checkpoint: last", "few rows are learned by heart; best: for new questions"))
    return lines


def _validation(files: Sequence[DataFile], sizes: StageSizes) -> list[str]:
    """What a stage is measured with: the files that are named for it, else a share of the rows."""
    if held_out := [file for file in files if file.purpose == VALIDATION]:
        return [f"      validation:  # {localized('so are they named')}", *(f"        {line}" for line in _sources(held_out))]
    if not sizes.validation:
        return [_commented("      validation: 0", "there are too few different rows to keep some apart")]
    kept = round(sizes.rows * sizes.validation)
    what = RULES[sizes.kind].what
    return [_commented(f"      validation: {sizes.validation:.2g}", f"about {kept:,} {what} are kept to measure with")]


def _context_reason(kind: str, sizes: StageSizes) -> str:
    if FORMATS[kind].splits_documents:
        return "longer texts go on in the next row"
    if sizes.longer <= 0:
        return "all of them fit into it"
    return (
        f"{1 - sizes.longer:.1%} of them fit into it; longer ones are cut or left out"
        if sizes.longer >= 0.001
        else "nearly all fit"
    )


def _passes_reason(kind: str, sizes: StageSizes) -> str:
    if sizes.passes < 1:
        return "there is more data than time: fledge init --minutes N for more"
    if FORMATS[kind].splits_documents:
        return "four passes teach nearly as much as new text, ten are the most" if sizes.passes > 1 else "one pass"
    return "few rows have to be read often" if sizes.passes > 3 else "each row is read a few times"


# -- sources -----------------------------------------------------------------------------------------------------------------


def _sources(files: Sequence[DataFile]) -> list[str]:
    """A line of YAML for each file, or for all files of a folder that are alike."""
    lines = []
    for group in alike(files):
        why = "; ".join(group[0].reasons)
        lines.append(_source(path_of(group), group[0].source) + (f"  # {_one_line(localized(why))}" if why else ""))
    return lines


def _source(path: str, settings: dict[str, Any]) -> str:
    return f"- {_scalar({'path': path, **settings})}" if settings else f"- {_scalar(path)}"


def _samples(kinds: dict[str, list[DataFile]]) -> list[str]:
    """Prompts and beginnings from the data, which the model is asked to answer and to continue before and after each stage."""
    asked = [text for kind, files in kinds.items() if FORMATS[kind].is_dialogue for file in files for text in file.openings]
    texts = [text for kind, files in kinds.items() if not FORMATS[kind].is_dialogue for file in files for text in file.openings]
    prompts = [one for one in dict.fromkeys(map(str.strip, asked)) if 0 < len(one) <= SAMPLE_CHARACTERS and "\n" not in one]
    beginnings = [text.strip().splitlines()[0][:12] for text in texts if text.strip()]
    lines = ["generation_samples:  # " + localized("asked before and after each stage, to see what it has learned")]
    for key, values in (("prompts", prompts), ("texts", beginnings)):
        if values:
            lines.append(f"  {key}: {_scalar(list(dict.fromkeys(values))[:SAMPLES])}")
    return lines if len(lines) > 1 else []


def _scalar(value: Any) -> str:
    """A value on one line of YAML."""
    is_plain = json.dumps(value, ensure_ascii=False).isprintable()  # others, such as U+0085, would end the line
    text = yaml.safe_dump(value, allow_unicode=is_plain, default_flow_style=True, width=10**6, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def _number(value: float) -> str:
    return f"{value:.10f}".rstrip("0").rstrip(".")


def _short(tokens: float) -> str:
    return f"{tokens / 1e6:.1f}M" if tokens >= 1e6 else f"{tokens / 1e3:.0f}k" if tokens >= 1e4 else f"{tokens:,.0f}"

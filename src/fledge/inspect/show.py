"""The examples of a stage, token by token, coloured by their weight in the loss."""

import re
from collections.abc import Sequence

import numpy as np
from rich.text import Text

from fledge.data.build.row_locator import RowLocator
from fledge.data.storage import Examples
from fledge.errors import FledgeError
from fledge.escaping import PICTURES
from fledge.inspect.builds import OpenBuild, builds_of, open_build
from fledge.inspect.row_lookup import find_rows, parse_row_location
from fledge.inspect.target import Overrides
from fledge.run import Log
from fledge.run.terminal import Terminal, Verbatim
from fledge.tokenizer import Tokenizer
from fledge.tokenizer.pieces import token_texts

TRAINED, REJECTED, CONTEXT = "black on green", "black on red", "dim"
CONTROL = "bold blue"  # added to the style of a control token
STYLES = {"rejected": REJECTED}  # name of a sequence -> style of its trained tokens; TRAINED for others
OPEN, CLOSE = "⟦", "⟧"  # around trained text when there are no colours
CONTROL_OPEN, CONTROL_CLOSE = "«", "»"  # around control tokens when there are no colours
PART = "·"  # a token that is a part of a character, which stands at the character's last token
TRAILING_BLANK = re.compile(r" +(?=\n|\Z)")
BLANK = "␠"  # a blank before a line break, a control token or the end, where it would not be seen
WHITE_SPACE = {ord("\n"): "⏎\n", ord("\t"): "⇥", 0xA0: "⍽", 0xFEFF: "\\ufeff", 0x200B: "\\u200b"}
VISIBLE = {**PICTURES, **WHITE_SPACE, ord("\ufffd"): "·"}
LEGEND = (
    "⏎ is a line break, ⇥ a tab, ␠ a blank at an end, · a part of a character; [0.5] is the weight of what follows, where it "
    "is not 1"
)


def legend(terminal: Terminal) -> str:
    """The meaning of the colours or, without colours, of the brackets."""
    if coloured(terminal):
        colours = "green: trained (weight 1), a rejected answer red; dim: context only (weight 0); bold blue: a control token"
        return f"{colours}; {LEGEND}"
    marks = f"{CONTROL_OPEN}a control token{CONTROL_CLOSE}, the same text without « » is spelled out"
    return f"{OPEN}trained{CLOSE} (weight 1); all else is context only (weight 0); {marks}; {LEGEND}"


def coloured(terminal: Terminal) -> bool:
    """Whether the terminal shows styles."""
    return terminal.is_terminal and not terminal.no_color


def paint(
    tokenizer: Tokenizer, tokens: np.ndarray, weights: np.ndarray, trained: str = TRAINED, brackets: bool = False
) -> Text:
    """One sequence as text: tokens [T] in the style of their weights [T]; every second token is underlined.

    The first token has no weight, because no position predicts it.
    """
    text, before = Verbatim(), 0.0
    shown_texts = _visible_texts(tokenizer, tokens)
    for number, (weight, (shown, is_control)) in enumerate(zip(weights.tolist(), shown_texts, strict=True)):
        weight = weight if number else 0.0
        if weight != before:
            text.append(CLOSE if brackets and before and not weight else "")
            text.append(OPEN if brackets and weight and not before else "")
            text.append(f"[{weight:g}]" if weight not in (0.0, 1.0) else "", style="yellow")
            before = weight
        if brackets:
            shown = f"{CONTROL_OPEN}{shown}{CONTROL_CLOSE}" if is_control else shown
        style = f"{trained if weight else CONTEXT}{f' {CONTROL}' if is_control else ''}"
        if not shown and not brackets:
            shown = PART
        text.append(shown, style=f"{style} underline" if number % 2 and not brackets else style)
    return text.append(CLOSE if brackets and before else "")


def _visible_texts(tokenizer: Tokenizer, tokens: np.ndarray) -> list[tuple[str, bool]]:
    """The text of each token with visible white space, and whether it is a control token."""
    visible = []
    ends = True  # whether a line, a run of text or the sequence ends behind the token
    for text, is_control in reversed(token_texts(tokenizer, tokens.tolist())):
        shown = TRAILING_BLANK.sub(lambda match: BLANK * len(match[0]), text + ("" if ends else "\0"))
        visible.append((shown.removesuffix("\0").translate(VISIBLE), is_control))
        begins = text.lstrip(" ")
        ends = is_control or (begins.startswith("\n") if begins else ends)
    return visible[::-1]


def print_example(terminal: Terminal, build: OpenBuild, examples: Examples, example: int, location: str) -> None:
    """Print all sequences of one example, each below a line that describes it."""
    names, sequences = build.plan.format.sequence_names, examples.sequences_of(np.asarray([example])).tolist()
    for name, sequence in zip(names, sequences, strict=True):
        tokens, weights = examples.sequence(sequence)
        trained = int((weights[1:] > 0).sum())
        label, style = f"example {example} {name}".rstrip(), STYLES.get(name, TRAINED)
        terminal.rule(Text(f"{label}: {len(tokens):,} tokens, {trained:,} trained · {location}"), align="left")
        terminal.print(paint(build.tokenizer, tokens, weights, style, brackets=not coloured(terminal)))


def show(
    targets: Sequence[str], overrides: Overrides, stage: str | None, offset: int, limit: int, row: str | None, log: Log
) -> None:
    """Print training examples of a stage, or the examples of one row of a file."""
    location = None if row is None else parse_row_location(row)
    with builds_of(targets, overrides, stage, log) as builds:
        if builds.error:
            raise builds.error
        if stage is None and row is None and len(builds.folders) > 1:
            raise FledgeError("say which stage", where="--stage", hint=f"there are {', '.join(builds.folders)}")
        terminal = Terminal()
        terminal.print(Text(legend(terminal), style="italic"))
        opened = [open_build(name, folder) for name, folder in builds.folders.items()]
        if location is None:
            _show_some(terminal, opened[0], offset, limit)
            return
        located = [(build, located_row) for build in opened for located_row in find_rows(build, location)]
        shown = [print_row(terminal, build, located_row.shard.number, located_row.row) for build, located_row in located]
        if not shown:
            raise FledgeError("no source has this row", where=f"--row {row}")
        if not any(shown):
            raise FledgeError("this row gives no example", where=f"--row {row}",
                              hint="`fledge data account` with the same --row says why")  # fmt: skip


def _show_some(terminal: Terminal, build: OpenBuild, first: int, count: int) -> None:
    examples, locator = build.data.train.examples, RowLocator(build.data)
    if not 0 <= first < examples.count:
        raise FledgeError(f"there is no example {first}: the stage has {examples.count:,}", where="--offset")
    if count < 1:
        raise FledgeError("--limit must be above 0")
    for example in range(first, min(first + count, examples.count)):
        print_example(terminal, build, examples, example, locator.example(example))
    for line in build.data.report.lines():
        terminal.print(Text(line, style="dim"), soft_wrap=True)


def print_row(terminal: Terminal, build: OpenBuild, shard: int, row: int) -> int:
    """Print the examples of one row, from training or validation. Returns their number."""
    shown = 0
    for split, data in (("training", build.data.train), ("validation", build.data.validation)):
        if data is None:
            continue
        for example in examples_of(data.examples, shard, row):
            print_example(terminal, build, data.examples, example, f"{build.name}, {split}")
            shown += 1
    return shown


def examples_of(examples: Examples, shard: int, row: int) -> list[int]:
    """The numbers of the examples that a row became."""
    assert examples.shard is not None and examples.row is not None
    return np.flatnonzero((examples.shard == shard) & (examples.row == row)).tolist()

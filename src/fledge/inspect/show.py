"""Examples of a stage, token by token, coloured by their weight in the loss."""

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.text import Text

from fledge.data.build.row_locator import RowLocator
from fledge.data.storage import Examples
from fledge.errors import FledgeError
from fledge.inspect.row_lookup import find_rows, parse_place
from fledge.inspect.tables import PICTURES
from fledge.inspect.target import OpenBuild, Overrides, Say, builds_of, open_build
from fledge.tokenizer import Tokenizer

TRAINED, REJECTED, CONTEXT = "black on green", "black on red", "dim"
STYLES = {"rejected": REJECTED}  # of sequences by their name; others are TRAINED
OPEN, CLOSE = "⟦", "⟧"  # where there are no colours
VISIBLE = {**PICTURES, ord("\ufffd"): "·", ord("\n"): "⏎\n", ord("\t"): "\t"}
LEGEND = "⏎ is a line break, · an unfinished character; [0.5] is the weight of what follows, where it is not 1"


def legend(terminal: Console) -> str:
    """What the colours mean; without colours, what the brackets mean."""
    if coloured(terminal):
        return f"green: trained (weight 1), a rejected answer red; dim: context only (weight 0); {LEGEND}"
    return f"{OPEN}trained{CLOSE} (weight 1); all else is context only (weight 0); {LEGEND}"


def coloured(terminal: Console) -> bool:
    """Whether styles can be seen."""
    return terminal.is_terminal and not terminal.no_color


def paint(
    tokenizer: Tokenizer, tokens: np.ndarray, weights: np.ndarray, trained: str = TRAINED, brackets: bool = False
) -> Text:
    """One sequence; neighbouring tokens are told apart by an underline. The first token is nobody's target."""
    text, before = Text(), 0.0
    for number, (token, weight) in enumerate(zip(tokens.tolist(), weights.tolist(), strict=True)):
        weight = weight if number else 0.0
        if weight != before:
            text.append(CLOSE if brackets and before and not weight else "")
            text.append(OPEN if brackets and weight and not before else "")
            text.append(f"[{weight:g}]" if weight not in (0.0, 1.0) else "", style="yellow")
            before = weight
        shown = tokenizer.decode([token]).translate(VISIBLE)
        style = trained if weight else CONTEXT
        text.append(shown, style=f"{style} underline" if number % 2 and not brackets else style)
    return text.append(CLOSE if brackets and before else "")


def print_example(terminal: Console, opened: OpenBuild, examples: Examples, example: int, place: str) -> None:
    """All sequences of one example, each under a line that says what it is."""
    names = opened.plan.format.sequence_names
    for name, sequence in zip(names, examples.sequences_of(np.asarray([example])).tolist(), strict=True):
        tokens, weights = examples.sequence(sequence)
        trained = int((weights[1:] > 0).sum())
        label = f"example {example} {name}".rstrip()
        terminal.rule(Text(f"{label}: {len(tokens):,} tokens, {trained:,} trained · {place}"), align="left")
        style = STYLES.get(name, TRAINED)
        terminal.print(paint(opened.tokenizer, tokens, weights, style, brackets=not coloured(terminal)))


def show(
    targets: Sequence[str], overrides: Overrides, stage: str | None, first: int, count: int, row: str | None, say: Say
) -> None:
    """Print training examples of a stage, or those of one row of a file."""
    place = None if row is None else parse_place(row)
    with builds_of(targets, overrides, stage, say) as builds:
        if builds.error:
            raise builds.error
        if stage is None and row is None and len(builds.folders) > 1:
            raise FledgeError("say which stage", where="--stage", hint=f"there are {', '.join(builds.folders)}")
        terminal = Console(highlight=False)
        terminal.print(Text(legend(terminal), style="italic"))
        opened = [open_build(name, folder) for name, folder in builds.folders.items()]
        if place is None:
            _show_some(terminal, opened[0], first, count)
            return
        shown = [print_row(terminal, one, found.shard.number, found.row) for one in opened for found in find_rows(one, place)]
        if not shown:
            raise FledgeError("no source has this row", where=f"--row {row}")
        if not any(shown):
            raise FledgeError("this row gives no example", where=f"--row {row}",
                              hint="`fledge data account` with the same --row says why")  # fmt: skip


def _show_some(terminal: Console, opened: OpenBuild, first: int, count: int) -> None:
    examples, places = opened.data.train.examples, RowLocator(opened.data)
    if not 0 <= first < examples.count:
        raise FledgeError(f"there is no example {first}: the stage has {examples.count:,}", where="--first")
    if count < 1:
        raise FledgeError("--count must be above 0")
    for example in range(first, min(first + count, examples.count)):
        print_example(terminal, opened, examples, example, places.example(example))
    for line in opened.data.report.lines():
        terminal.print(Text(line, style="dim"), soft_wrap=True)


def print_row(terminal: Console, opened: OpenBuild, shard: int, row: int) -> int:
    """The examples of one row, of training or validation; how many there are."""
    shown = 0
    for split, data in (("training", opened.data.train), ("validation", opened.data.validation)):
        if data is None:
            continue
        for example in examples_of(data.examples, shard, row):
            print_example(terminal, opened, data.examples, example, f"{opened.name}, {split}")
            shown += 1
    return shown


def examples_of(examples: Examples, shard: int, row: int) -> list[int]:
    """Numbers of the examples that a row became."""
    assert examples.shard is not None and examples.row is not None
    return np.flatnonzero((examples.shard == shard) & (examples.row == row)).tolist()

"""Examples of a stage, token by token, coloured by their weight in the loss."""

from rich.console import Console
from rich.text import Text

from fledge.data.examples import Examples
from fledge.errors import FledgeError
from fledge.pipeline import Pipeline
from fledge.recipe import Recipe
from fledge.run import Console as RunConsole
from fledge.tokenizer import Tokenizer

TRAINED, CONTEXT = "black on green", "dim"
LEGEND = "green: trained (weight 1); dim: context only (weight 0); ⏎ is a line break, · an unfinished character"


def paint(tokenizer: Tokenizer, examples: Examples, sequence: int) -> Text:
    """One sequence; neighbouring tokens are told apart by an underline. The first token is nobody's target."""
    tokens, weights = examples.sequence(sequence)
    text = Text()
    for number, (token, weight) in enumerate(zip(tokens.tolist(), weights.tolist(), strict=True)):
        shown = tokenizer.decode([token]).replace("\ufffd", "·").replace("\n", "⏎\n")
        trained = weight > 0 and number > 0
        style = TRAINED if trained else CONTEXT
        text.append(shown, style=f"{style} underline" if number % 2 else style)
        if trained and weight != 1:
            text.append(f"[{weight:g}]", style="yellow")
    return text


def show(recipe: Recipe, stage: str, first: int, count: int) -> None:
    """Print examples of a stage; the run's tokenizer is used if it has one, else it is trained now."""
    if stage not in recipe.stages:
        raise FledgeError(f"the recipe has no stage '{stage}'", where="--stage", hint=f"it has {', '.join(recipe.stages)}")
    pipeline = Pipeline(recipe, RunConsole())
    tokenizer = pipeline.tokenizer(pipeline.directory.tokenizer)
    prepared = pipeline.prepare(stage, tokenizer)
    examples = prepared.data.train.examples
    terminal = Console(highlight=False)
    terminal.print(LEGEND, style="italic")
    if not 0 <= first < examples.count:
        raise FledgeError(f"there is no example {first}: the stage has {examples.count:,}", where="--first")
    for example in range(first, min(first + count, examples.count)):
        for part in range(examples.per_example):
            sequence = example * examples.per_example + part
            tokens, weights = examples.sequence(sequence)
            role = ("", "") if examples.per_example == 1 else (" chosen", " rejected")
            trained = int((weights[1:] > 0).sum())
            terminal.rule(f"example {example}{role[part]}: {len(tokens)} tokens, {trained} trained", align="left")
            terminal.print(paint(tokenizer, examples, sequence))
    for line in prepared.data.ledger.lines():
        terminal.print(line, style="dim")

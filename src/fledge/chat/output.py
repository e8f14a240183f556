"""What is printed: answers of the model to the output, everything else beside it."""

import sys
from collections.abc import Sequence

from fledge.escaping import escaped
from fledge.generation import Engine, SamplingParams, SwitchableEngine, decode_stream, find_adapters, load_engine
from fledge.localization import shown
from fledge.model.locate import locate_model
from fledge.tokenizer import Message, Tokenizer


def load(path: str, adapters: Sequence[str] = (), *, together: int = 1) -> SwitchableEngine:
    """The engine and the tokenizer of a run, stage, checkpoint, model directory or GGUF file, with adapters. `together`: most
    requests at a time."""
    return load_engine(locate_model(path, tell), tell, max_batch_size=together, adapters=find_adapters(adapters))


def tell(text: str) -> None:
    """Show a line that is not of the model."""
    print(shown(text), file=sys.stderr)


class StoppedAnswer(Exception):
    """Ctrl-C while an answer was printed. `text`: the answer up to there."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


def print_answer(engine: Engine, tokenizer: Tokenizer, prompt: list[int], params: SamplingParams) -> str:
    """Print the answer to a tokenised prompt as it is generated, and return it. Raises StoppedAnswer at Ctrl-C."""
    answer: list[str] = []
    try:
        for text in decode_stream(tokenizer, engine.stream(prompt, params)):
            answer.append(text)
            print(escaped(text), end="", flush=True)
    except KeyboardInterrupt:
        print()
        raise StoppedAnswer("".join(answer)) from None
    print()
    return "".join(answer)


def system_turn(system: str | None) -> list[Message]:
    """The turn of a system prompt; none without one."""
    return [Message("system", system)] if system else []

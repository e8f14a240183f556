"""Conversations for encoder–decoder models, whose sequences have one answer: an example for each answer of a conversation."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from fledge.data.encoding.examples import Encoded, EncodingConfig
from fledge.data.encoding.rendering import DialogueRounds
from fledge.data.row_events import RowEvent


def one_per_answer(dialogue: DialogueRounds, config: EncodingConfig) -> list[DialogueRounds]:
    """The dialogue up to each of its trained answers; unchanged if only the last one is trained."""
    if dialogue.completion_only or config.train_on_turns == "last":
        return [dialogue]
    ends = [
        number for number, turns in enumerate(dialogue.rounds, 1) if turns[-1].role == "assistant" and turns[-1].weight != 0
    ]
    return [replace(dialogue, rounds=dialogue.rounds[:end]) for end in ends] or [dialogue]


def joined(parts: Sequence[Encoded]) -> Encoded:
    """The encodings of the parts of one dialogue as one: events of equal reason are one event."""
    if len(parts) == 1:
        return parts[0]
    examples = tuple(example for part in parts for example in part.examples)
    if not examples:
        return parts[0]
    events: dict[tuple[str, str], RowEvent] = {}
    left_out = Counter(event.reason for part in parts if not part.examples for event in part.events if event.state == "dropped")
    for event in (event for part in parts if part.examples for event in part.events):
        known = events.get((event.state, event.reason))
        amount = event.amount + (known.amount if known else 0)
        events[event.state, event.reason] = replace(known or event, amount=amount)
    for reason, answers in left_out.items():
        detail = f"{answers} of {len(parts)} answers"
        events["shortened", reason] = RowEvent("shortened", f"rounds left out: {reason}", detail, answers)
    made = [RowEvent("split", "conversation made several examples", f"{len(examples)} examples", len(examples))]
    return Encoded(examples, (*(made if len(examples) > 1 else []), *events.values()))

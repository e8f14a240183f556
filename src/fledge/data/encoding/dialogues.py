"""Encoding of dialogues as token sequences with weight on the answers: render, encode in batches, weigh, truncate."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from fledge.data.encoding.augment import augment
from fledge.data.encoding.examples import NOT_UNICODE, Encoded, EncodingConfig, dropped, item_batches
from fledge.data.encoding.rendering import DialogueRounds, weigh_rounds
from fledge.data.encoding.single_answers import joined, one_per_answer
from fledge.data.encoding.truncation import fit_dialogue
from fledge.data.parsing.columns import RowError
from fledge.data.parsing.items import Item
from fledge.data.row_events import RowEvent
from fledge.tokenizer import TemplateError, Tokenizer
from fledge.tokenizer.message import Note, Rendering
from fledge.tokenizer.segments import Encoding

SEAMS = "a token would join a prompt and its answer"


def encode_dialogues(items: Iterable[Item], tokenizer: Tokenizer, config: EncodingConfig) -> Iterator[Encoded]:
    """The examples of each dialogue, in order: one sequence for each alternative answer, or one for a conversation. For an
    encoder–decoder, each answer of a conversation makes an example of its own.

    Dialogues are encoded in batches, in constant memory. Raises TypeError for a document."""
    for batch in item_batches(items):
        yield from _encode_batch(batch, tokenizer, config)


def _encode_batch(items: Sequence[Item], tokenizer: Tokenizer, config: EncodingConfig) -> Iterator[Encoded]:
    dialogues = [_augmented(DialogueRounds.of(item), config) for item in items]
    if tokenizer.decoder_start is None:
        yield from _encode_dialogues(dialogues, tokenizer, config)
        return
    divided = [[(part, events) for part in one_per_answer(dialogue, config)] for dialogue, events in dialogues]
    flat = [part for parts in divided for part in parts]
    encoded = _encode_dialogues(flat, tokenizer, replace(config, train_on_turns="last"))
    for parts in divided:
        yield joined([next(encoded) for _ in parts])


def _encode_dialogues(
    dialogues: Sequence[tuple[DialogueRounds, tuple[RowEvent, ...]]], tokenizer: Tokenizer, config: EncodingConfig
) -> Iterator[Encoded]:
    """The encoding of each dialogue, with the events about its augmentation."""
    renderings: list[list[Rendering]] = []
    refusals: dict[int, TemplateError] = {}  # index -> why it cannot be trained as the template writes it
    for index, (dialogue, _) in enumerate(dialogues):
        try:
            renderings.append(dialogue.renderings(0, len(dialogue.rounds), tokenizer, config.train_on_turns))
        except TemplateError as error:
            refusals[index] = error
            renderings.append([])
    for index, encodings in enumerate(_encode_renderings(tokenizer, renderings)):
        dialogue, augment_events = dialogues[index]
        if encodings is None:
            yield NOT_UNICODE
            continue
        try:
            if index in refusals:
                raise refusals[index]
            uncut = weigh_rounds(dialogue, 0, len(dialogue.rounds), encodings, config.train_on_turns)
            encoded = fit_dialogue(dialogue, uncut, tokenizer, config)
        except TemplateError as error:
            yield dropped(error.reason, error.what)
        except RowError as error:
            yield dropped(error.reason, error.detail)
        else:
            events = (*augment_events, *_notices(renderings[index], encodings), *encoded.events)
            yield replace(encoded, events=events) if events else encoded


def _notices(renderings: Sequence[Rendering], encodings: Sequence[Encoding]) -> list[RowEvent]:
    """Events about what the template left out or changed, and about tokens that other software joins; one for each reason."""
    notes: dict[str, list[Note]] = {}
    for note in (note for rendering in renderings for note in rendering.notes):
        if note not in notes.setdefault(note.reason, []):
            notes[note.reason].append(note)
    events = [
        RowEvent("noticed", reason, _printable("; ".join(note.detail for note in own)), sum(note.amount for note in own))
        for reason, own in notes.items()
    ]
    seams = sum(encoding.seams for encoding in encodings)
    return [*events, RowEvent("noticed", SEAMS, f"{seams} places", seams)] if seams else events


def _printable(text: str) -> str:
    return text.encode(errors="replace").decode()


def _augmented(dialogue: DialogueRounds, config: EncodingConfig) -> tuple[DialogueRounds, tuple[RowEvent, ...]]:
    """The dialogue as it is trained, and the events about what augmentation changed in it."""
    if not config.augment.drop_last_turns and not config.augment.noise:
        return dialogue, ()
    rounds, ended, letters = augment(dialogue.rounds, config.augment, config.seed, may_end=not dialogue.completion_only)
    events = []
    if ended:
        detail = f"{ended} of {len(dialogue.rounds)} rounds"
        events.append(RowEvent("changed", "ended after an earlier round", detail, ended))
    if letters:
        events.append(RowEvent("changed", "typing errors in questions", f"{letters:,} letters", letters))
    return replace(dialogue, rounds=tuple(rounds)), tuple(events)


def _encode_renderings(tokenizer: Tokenizer, items: Sequence[list[Rendering]]) -> list[list[Encoding] | None]:
    """The encodings of each item's renderings; None where its text has no UTF-8 form."""
    try:
        segments = [rendering.segments for renderings in items for rendering in renderings]
        encodings = iter(tokenizer.encode_segments(segments))
    except UnicodeEncodeError:
        if len(items) == 1:
            return [None]
        return [encoding for renderings in items for encoding in _encode_renderings(tokenizer, [renderings])]
    return [[next(encodings) for _ in renderings] for renderings in items]

"""Messages of Protocol Buffers, read field by field without their descriptions (https://protobuf.dev/programming-guides/encoding)."""

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message: number and value, an integer or bytes. Raises ValueError where it is damaged."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        wire = tag & 7
        if wire == VARINT:
            value, place = _varint(message, place)
        else:
            if wire == BYTES:
                length, place = _varint(message, place)
            else:
                length = {FIXED64: 8, FIXED32: 4}.get(wire, -1)
            if length < 0 or place + length > len(message):
                raise ValueError("a damaged message")
            value, place = message[place : place + length], place + length
        yield tag >> 3, value


def messages(message: bytes, number: int) -> Iterator[bytes]:
    """The values of all fields of a message with this number that are bytes."""
    for found, value in fields(message):
        if found == number and isinstance(value, bytes):
            yield value


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if place >= len(message) or shift > 63:
            raise ValueError("a damaged number")
        byte = message[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7

"""Items are read back unchanged after writing, and their placeholders are detected."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fledge.data.parsing.items import (
    BinaryFeedback,
    Conversation,
    Document,
    Item,
    PreferencePair,
    deserialize,
    serialize,
)
from fledge.data.parsing.row_statistics import placeholders
from fledge.tokenizer import Message
from fledge.tokenizer.template import ToolCall
from tests.support.chat_rows import Q

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
OPTIONAL = st.none() | TEXT
MESSAGES = st.lists(
    st.builds(
        Message, TEXT, TEXT, st.lists(st.builds(ToolCall, TEXT, TEXT, OPTIONAL), max_size=2).map(tuple),
        st.none() | st.floats(0, 1e300), reasoning=OPTIONAL, name=OPTIONAL, tool_call_id=OPTIONAL,
    ), max_size=4,
).map(tuple)  # fmt: skip
TOOLS = st.none() | TEXT
ITEMS = st.one_of(
    st.builds(Document, TEXT), st.builds(Conversation, MESSAGES, TOOLS),
    st.builds(PreferencePair, MESSAGES, TEXT, TEXT, TOOLS, st.just(()) | st.tuples(OPTIONAL, OPTIONAL)),
    st.builds(BinaryFeedback, MESSAGES, TEXT, st.booleans(), TOOLS, OPTIONAL),
)  # fmt: skip


@given(ITEMS)
@example(Document("line\nbreak\u2028\x00"))
@example(Conversation((Message("assistant", "", (), 0.1), Message("assistant", "", (ToolCall("", ""),)))))
@example(Conversation((Message("assistant", "", (), 0.0),)))
def test_item_survives_serialization(item: Item) -> None:
    line = serialize(item)
    assert b"\n" not in line
    assert deserialize(line + b"\n") == item


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I am {{name}}, made by {{ author }}; {{name}}!", ["{{name}}", "{{ author }}"]),
        ("我是{{name}}，由{{author_2}}开发", ["{{name}}", "{{author_2}}"]),
        ("I am <NAME> of <AUTHOR>", ["<NAME>", "<AUTHOR>"]),
        (r"$\frac{{ab}}{{cd}}$ x^{{ab}} {{x}} {{{name}}} ${{secret}}", []),
        ("{name} {{}} {{a b}} {{ item.name }} {{1}} <name> <B>", []),
    ],
)
def test_placeholders_are_detected_and_formulas_are_not(text: str, expected: list[str]) -> None:
    assert placeholders(Document(text)) == expected
    assert placeholders(Conversation((Q, Message("assistant", text)))) == expected
    assert placeholders(PreferencePair((Message("user", text),), "c", "r")) == expected
    assert placeholders(PreferencePair((Q,), "c", text)) == expected
    assert placeholders(BinaryFeedback((Q,), text, True)) == expected

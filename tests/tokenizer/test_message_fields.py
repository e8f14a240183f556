"""Every field of a message reaches the chat template, and the text equals that of transformers."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from fledge.tokenizer import Message, Tokenizer
from fledge.tokenizer.template import ToolCall
from tests.support.templates import with_template

FIELDS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.name %} ({{ m.name }}){% endif %}"
    "{% if m.tool_call_id %} for {{ m.tool_call_id }}{% endif %}{{ '\n' }}"
    "{% if m.role == 'assistant' and m.KEY %}[{{ m.KEY }}]\n{% endif %}{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}[{{ c.id }} {{ c.function.name }} {{ c.function.arguments | tojson }}]{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}{# tools #}"
)
ROW: list[dict[str, Any]] = [
    {"role": "user", "name": "Ann", "content": "Weather?"},
    {"role": "assistant", "content": "", "reasoning_content": "ask", "tool_calls": [
        {"id": "abc", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]},
    {"role": "tool", "name": "weather", "tool_call_id": "abc", "content": "rain"},
    {"role": "assistant", "content": "It rains.", "reasoning_content": "rain"},
]  # fmt: skip
MESSAGES = [
    Message("user", "Weather?", name="Ann"),
    Message("assistant", "", (ToolCall("weather", '{"city": "Oslo"}', "abc"),), reasoning="ask"),
    Message("tool", "rain", name="weather", tool_call_id="abc"),
    Message("assistant", "It rains.", reasoning="rain"),
]


@pytest.mark.parametrize("key", ["reasoning_content", "thinking"])
def test_the_template_gets_names_call_ids_and_reasoning(chatml: Tokenizer, tmp_path: Path, key: str) -> None:
    tokenizer = with_template(chatml, tmp_path, FIELDS.replace("KEY", key))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    text = "".join(segment.text for segment in tokenizer.template.render(MESSAGES))
    assert text == theirs.apply_chat_template(ROW, tokenize=False)
    for part in ("(Ann)", "[ask]", "[abc weather", "for abc", "[rain]\nIt rains."):
        assert part in text
    assert tokenizer.encode_conversation(MESSAGES)[0] == theirs.apply_chat_template(ROW, return_dict=False)


@pytest.mark.parametrize("native", ["chatml", "inst"])
def test_a_native_template_writes_reasoning_as_its_exported_one(
    native: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    tokenizer = request.getfixturevalue(native)
    tokenizer.save(tmp_path)
    row = [ROW[0], ROW[3]]
    text = "".join(segment.text for segment in tokenizer.template.render([MESSAGES[0], MESSAGES[3]]))
    assert "<think>\nrain\n</think>\n\nIt rains." in text
    assert text == AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(row, tokenize=False)


def test_a_template_without_a_place_for_reasoning_gets_it_in_the_content(chatml: Tokenizer, tmp_path: Path) -> None:
    jinja = "{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}"
    jinja += "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
    tokenizer = with_template(chatml, tmp_path, jinja)
    text = "".join(segment.text for segment in tokenizer.template.render([MESSAGES[0], MESSAGES[3]]))
    assert "assistant:<think>\nrain\n</think>\n\nIt rains.<|im_end|>" in text

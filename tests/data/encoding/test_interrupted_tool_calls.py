"""A user's turn straight after the result of a tool, as logs of agents have it: the template decides how it is written."""

from pathlib import Path

import pytest

from fledge.data.encoding.examples import EncodingConfig
from fledge.data.parsing.items import Conversation
from fledge.data.parsing.rows import read_row
from fledge.recipe.schema import AugmentConfig
from fledge.tokenizer import Tokenizer
from tests.support.chat_rows import source
from tests.support.conversations import encode, reasons, trained
from tests.support.parsing import PARSERS
from tests.support.templates import with_template

CONFIG = EncodingConfig(
    max_seq_len=1000, truncation="keep_recent", train_on_turns="all", min_tokens=0, augment=AugmentConfig(), seed=1
)
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "find", "arguments": {"x": 1}}}]}
ROW = {
    "messages": [
        {"role": "user", "content": "Look it up."},
        CALL,
        {"role": "tool", "content": "nothing"},
        {"role": "user", "content": "Never mind."},
        {"role": "assistant", "content": "As you wish."},
    ]
}
JINJA = (
    "{% for m in messages %}"
    "{% if m.role == 'user' and not loop.first and messages[loop.index0 - 1].role == 'tool' and strict %}"
    "{{ raise_exception('a tool result needs an answer') }}{% endif %}<|im_start|>{{ m.role }}\n{% generation %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}[{{ call.function.name }}]{% endfor %}<|im_end|>{% endgeneration %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def conversation() -> Conversation:
    parsed = read_row(ROW, source(), PARSERS["sft"])
    assert isinstance(parsed.item, Conversation)
    return parsed.item


def test_chatml_trains_the_call_and_the_answer(chatml: Tokenizer) -> None:
    encoded = encode(conversation(), chatml, CONFIG)
    ((sequence,),) = encoded.examples
    assert trained(chatml, sequence).count("<|im_end|>") == 2 and "As you wish." in trained(chatml, sequence)
    assert "Never mind." in chatml.decode(sequence[0].tolist()) and "Never mind." not in trained(chatml, sequence)


@pytest.mark.parametrize("strict", [False, True])
def test_a_jinja_template_writes_it_or_refuses_it_with_its_own_message(strict: bool, chatml: Tokenizer, tmp_path: Path) -> None:
    tokenizer = with_template(chatml, tmp_path, JINJA.replace("and strict", "and true" if strict else "and false"))
    encoded = encode(conversation(), tokenizer, CONFIG)
    if strict:
        assert not encoded.examples and reasons(encoded, "dropped") == ["the chat template refuses it"]
        assert any("a tool result needs an answer" in event.detail for event in encoded.events)
    else:
        assert "As you wish." in trained(tokenizer, encoded.examples[0][0]) and "[find]" in trained(
            tokenizer, encoded.examples[0][0]
        )

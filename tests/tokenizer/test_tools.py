"""Tools in conversations: what is called is trained, what comes back is not, and both are written as others write them."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from fledge.data.parsing.items import Conversation
from fledge.recipe.schema import Source
from fledge.tokenizer import ChatTemplate, Message, TemplateError, Tokenizer, load_tokenizer
from fledge.tokenizer.template import CHATML, INST, TextSegment, ToolCall
from tests.support.parsing import parse_row

CONTROL = ("<|im_end|>", "<|im_start|>", "<|endoftext|>", "<tool_call>", "</tool_response>", "user\n")
TEXT = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=12),
    st.lists(st.sampled_from([*CONTROL, "\n", " ", "好", '"', "\\"]), min_size=1, max_size=4).map("".join),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inside: st.lists(inside, max_size=2) | st.dictionaries(TEXT, inside, max_size=2),
    max_leaves=4,
)
CALLS = st.builds(ToolCall, TEXT, st.dictionaries(TEXT, VALUES, max_size=2).map(json.dumps))
ROUNDS = st.tuples(
    TEXT,  # the question
    st.lists(
        st.tuples(TEXT, st.lists(CALLS, min_size=1, max_size=2), st.lists(TEXT, max_size=2)), max_size=2
    ),  # calls, results
    TEXT,  # the answer
)
TOOLS = st.none() | st.lists(st.dictionaries(TEXT, VALUES, max_size=2), max_size=2).map(partial(json.dumps, ensure_ascii=False))


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """System turn or none, then one or two rounds, each with calls and results or without."""
    system = draw(st.none() | TEXT)
    messages = [] if system is None else [Message("system", system)]
    for question, steps, answer in draw(st.lists(ROUNDS, min_size=1, max_size=2)):
        messages.append(Message("user", question))
        for said, calls, results in steps:
            messages.append(Message("assistant", said, tuple(calls)))
            messages += [Message("tool", result) for result in results]
        messages.append(Message("assistant", answer))
    return messages


def turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages in OpenAI's form."""
    made = []
    for message in messages:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            turn["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": json.loads(call.arguments)}}
                for call in message.tool_calls
            ]
        made.append(turn)
    return made


def text_of(pieces: Sequence[TextSegment]) -> str:
    return "".join(piece.text for piece in pieces)


def trained(pieces: Sequence[TextSegment]) -> str:
    return "".join(piece.text for piece in pieces if piece.weight)


def call_text(call: ToolCall) -> str:
    arguments = json.dumps(json.loads(call.arguments), ensure_ascii=False)
    return f'<tool_call>\n{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": {arguments}}}\n</tool_call>'


def answer_text(message: Message) -> str:
    """What an assistant's turn adds in the form of Hermes and Qwen."""
    return "\n".join([*([message.content] if message.content else []), *map(call_text, message.tool_calls)]) + "<|im_end|>"


@pytest.fixture(scope="module")
def exported(chatml: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The ChatML tokenizer as transformers sees it."""
    folder = tmp_path_factory.mktemp("chatml")
    chatml.save(folder)
    return AutoTokenizer.from_pretrained(folder)


# -- ChatML -------------------------------------------------------------------------------------------------------------

TALK = (
    Message("system", "Be brief."),
    Message("user", "1+2, 3+4?"),
    Message("assistant", "Let me see.", (ToolCall("add", '{"a":1,"b":2}'), ToolCall("add", '{"a": 3, "b": 4}'))),
    Message("tool", "3"),
    Message("tool", "7"),
    Message("assistant", "3 and 7"),
)
WRITTEN = """<|im_start|>system
Be brief.

# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{"name": "add", "description": "加"}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
<|im_start|>user
1+2, 3+4?<|im_end|>
<|im_start|>assistant
Let me see.
<tool_call>
{"name": "add", "arguments": {"a": 1, "b": 2}}
</tool_call>
<tool_call>
{"name": "add", "arguments": {"a": 3, "b": 4}}
</tool_call><|im_end|>
<|im_start|>user
<tool_response>
3
</tool_response>
<tool_response>
7
</tool_response><|im_end|>
<|im_start|>assistant
3 and 7<|im_end|>
"""
ADD = '[{"name":"add","description":"加"}]'


def test_chatml_writes_tools_as_hermes_and_qwen_do() -> None:
    pieces = CHATML.render(TALK, ADD)
    assert text_of(pieces) == WRITTEN
    assert [(piece.text, piece.turn) for piece in pieces if piece.weight] == [
        (WRITTEN[WRITTEN.index("Let me") : WRITTEN.index("<|im_end|>\n<|im_start|>user\n<tool_r")], 2),
        ("<|im_end|>", 2),
        ("3 and 7", 5),
        ("<|im_end|>", 5),
    ]
    assert text_of(CHATML.prompt(TALK[:5], ADD)) == WRITTEN[: WRITTEN.index("3 and 7")]
    assert text_of(CHATML.render(TALK[1:2], ADD)).startswith("<|im_start|>system\n# Tools\n")


@given(conversations())
def test_chatml_without_tools_is_nothing_but_roles_and_contents(messages: list[Message]) -> None:
    plain = [Message(message.role, message.content) for message in messages if message.role != "tool"]
    written = "".join(f"<|im_start|>{message.role}\n{message.content}<|im_end|>\n" for message in plain)
    for tools in (None, "", "[]"):
        assert text_of(CHATML.render(plain, tools)) == written


@given(conversations(), TOOLS)
def test_native_text_with_tools_equals_the_exported_template_in_transformers(
    exported: Any, messages: list[Message], tools: str | None
) -> None:
    described = json.loads(tools) if tools else None
    assert text_of(CHATML.render(messages, tools)) == exported.apply_chat_template(
        turns(messages), tools=described, tokenize=False
    )
    assert text_of(CHATML.prompt(messages[:-1], tools)) == exported.apply_chat_template(
        turns(messages[:-1]), tools=described, tokenize=False, add_generation_prompt=True
    )


@given(conversations(), TOOLS)
def test_calls_are_trained_and_results_are_not(messages: list[Message], tools: str | None) -> None:
    pieces = CHATML.render(messages, tools)
    for index, message in enumerate(messages):
        own = [piece for piece in pieces if piece.turn == index]
        assert text_of(own) == (answer_text(message) if message.role == "assistant" else "")
    assert all((piece.weight > 0) == (piece.turn is not None) for piece in pieces)


@given(conversations(), TOOLS)
def test_a_prompt_with_tools_is_the_beginning_of_its_training_row(
    chatml: Tokenizer, messages: list[Message], tools: str | None
) -> None:
    tokens, weights = chatml.encode_pieces(CHATML.render(messages, tools))
    for index, message in enumerate(messages):
        if message.role == "assistant":
            prompt, _ = chatml.encode_pieces(CHATML.prompt(messages[:index], tools))
            assert tokens[: len(prompt)] == prompt
            assert (weights[len(prompt) - 1], weights[len(prompt)]) == (0.0, 1.0)


@given(conversations(), TOOLS)
def test_nothing_about_tools_can_end_or_begin_a_turn(chatml: Tokenizer, messages: list[Message], tools: str | None) -> None:
    tokens, _ = chatml.encode_pieces(CHATML.render(messages, tools))
    groups = [m for i, m in enumerate(messages) if m.role != "tool" or messages[i - 1].role != "tool"]
    expected = len(groups) + (tools not in (None, "[]") and messages[0].role != "system")
    for control in ("<|im_start|>", "<|im_end|>"):
        assert tokens.count(chatml.core.get_vocab()[control]) == expected
    assert tokens.count(chatml.eos_id) == 0


# -- [INST] and templates without tools ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "tools", "said"),
    [
        (TALK[:2], ADD, "no place for tools"),
        (TALK[:3], None, "no place for tool calls in turn 3"),
        ((TALK[1], TALK[3]), None, "no place for role 'tool' in turn 2"),
    ],
)
def test_the_inst_template_refuses_tools_natively_and_exported(messages: tuple, tools: str | None, said: str) -> None:
    for ask in (INST.render, INST.prompt):
        with pytest.raises(TemplateError) as caught:
            ask(messages, tools)
        assert said in caught.value.what
    with pytest.raises(TemplateError, match="no place for tool"):
        ChatTemplate("tokenizer", INST.jinja, INST.specials).render(messages, tools)
    assert INST.render(TALK[:2], "[]") == INST.render(TALK[:2])


DUMB = "{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}{{ '<|im_start|>assistant:' if " \
    "add_generation_prompt else '' }}"  # fmt: skip


def jinja(text: str) -> ChatTemplate:
    return ChatTemplate("tokenizer", text, ("<|im_start|>", "<|im_end|>"))


def test_a_template_that_would_leave_tools_out_without_a_word_refuses_them() -> None:
    for ask in (jinja(DUMB).render, jinja(DUMB).prompt):
        with pytest.raises(TemplateError, match="no place for tools"):
            ask(TALK[:2], ADD)
        with pytest.raises(TemplateError, match="no place for the tool calls of turn 3"):
            ask(TALK)
    assert trained(jinja(DUMB).render((*TALK[:2], TALK[5]), "[]")) == "3 and 7<|im_end|>"
    assert text_of(jinja("{{ tools is none }}").prompt(TALK[:2], "[]")) == "True"


@pytest.mark.parametrize("tools", ["[", "3", '{"name": "add"}', "[" * 100_000])
def test_tools_that_are_no_list_are_a_template_error(tools: str) -> None:
    for template in (CHATML, jinja(CHATML.jinja)):
        with pytest.raises(TemplateError, match=r"the tools are not JSON|the tools are (int|dict), not a list"):
            template.render(TALK[:2], tools)


def test_arguments_that_are_no_json_are_a_template_error() -> None:
    messages = (TALK[1], Message("assistant", "", (ToolCall("add", "1,"),)))
    for template in (CHATML, jinja(CHATML.jinja)):
        with pytest.raises(TemplateError, match="the arguments of 'add' in turn 2 are not JSON"):
            template.render(messages)


# -- Jinja templates ----------------------------------------------------------------------------------------------------


def test_a_template_gets_calls_in_openais_form_and_tools_as_values() -> None:
    options = "indent=1, sort_keys=true, separators=(',', ':'), ensure_ascii=true"
    show = jinja(f"{{{{ [messages, tools] | tojson({options}) }}}}{{# tool_calls #}}")
    shown = text_of(show.prompt(TALK, ADD))
    assert json.loads(shown) == [turns(TALK), json.loads(ADD)]
    expected = json.dumps([turns(TALK), json.loads(ADD)], indent=1, sort_keys=True, separators=(",", ":"))
    assert shown == expected


@given(conversations(), TOOLS)
def test_the_exported_chatml_marks_what_the_native_one_trains(messages: list[Message], tools: str | None) -> None:
    def parts(pieces: Sequence[TextSegment]) -> list[tuple[int | None, str]]:
        found = dict.fromkeys(piece.turn for piece in pieces if piece.weight)
        return [(turn, text_of([piece for piece in pieces if piece.turn == turn and piece.weight])) for turn in found]

    assert parts(jinja(CHATML.jinja).render(messages, tools)) == parts(CHATML.render(messages, tools))


def test_marks_belong_to_no_turn_where_they_are_not_as_many_as_the_answers() -> None:
    twice = (
        "{% for m in messages %}{{ m.role + ':' }}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{% endgeneration %}, {% generation %}ok<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    talk = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", ""))
    pieces = jinja(twice).render(talk)
    assert [(piece.text, piece.turn) for piece in pieces if piece.weight] == [
        ("b", None), ("ok<|im_end|>", None), ("ok<|im_end|>", None),
    ]  # fmt: skip
    once = jinja(twice.replace("{% endgeneration %}, {% generation %}", ", "))
    assert [(piece.text, piece.turn) for piece in once.render(talk) if piece.weight] == [
        ("b, ok<|im_end|>", 1), (", ok<|im_end|>", 3),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def minimind(shared_data: Path) -> Tokenizer:
    return load_tokenizer(shared_data / "tokenizers" / "minimind")


@pytest.fixture(scope="module")
def minimind_theirs(shared_data: Path) -> Any:
    return AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "minimind")


def test_chatml_says_to_a_model_what_the_real_minimind_template_says(minimind: Tokenizer) -> None:
    """Their system turn, questions and results are ours, letter by letter; answers differ by minimind's empty thoughts."""
    theirs = text_of(minimind.template.render(TALK, ADD))
    assert theirs.replace("<think>\n\n</think>\n\n", "") == WRITTEN


@pytest.mark.parametrize("language", ["en", "zh"])
def test_real_tool_calls_equal_transformers_rendering_of_the_real_minimind_template(
    shared_data: Path, minimind: Tokenizer, minimind_theirs: Any, language: str
) -> None:
    """The ids of every row of glaive_toolcall_*, and the supervised parts of each turn."""
    file = shared_data / "llamafactory" / f"glaive_toolcall_{language}_demo.json"
    calls = 0
    for row in json.loads(file.read_text(encoding="utf-8")):
        item = parse_row(row, Source(path="x"), "sft")
        assert isinstance(item, Conversation)
        pieces = minimind.template.render(item.messages, item.tools)
        theirs = minimind_theirs.apply_chat_template(
            turns(item.messages), tools=json.loads(item.tools) if item.tools else None, return_dict=False
        )
        assert minimind.encode_pieces(pieces)[0] == theirs
        for index, message in enumerate(item.messages):
            own = text_of([piece for piece in pieces if piece.turn == index])
            assert own == (answer_text(message) if message.role == "assistant" else "")
            calls += len(message.tool_calls)
    assert calls == {"en": 211, "zh": 216}[language]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_real_tool_calls_equal_transformers_rendering_of_the_exported_chatml(
    shared_data: Path, chatml: Tokenizer, exported: Any, language: str
) -> None:
    """Ids and the mask of trained tokens, against transformers' own mask of {% generation %}."""
    file = shared_data / "llamafactory" / f"glaive_toolcall_{language}_demo.json"
    for row in json.loads(file.read_text(encoding="utf-8"))[:40]:
        item = parse_row(row, Source(path="x"), "sft")
        assert isinstance(item, Conversation)
        tokens, weights = chatml.encode_pieces(CHATML.render(item.messages, item.tools))
        theirs = exported.apply_chat_template(
            turns(item.messages), tools=json.loads(item.tools) if item.tools else None, return_assistant_tokens_mask=True
        )
        assert tokens == theirs["input_ids"]
        assert [int(weight) for weight in weights] == theirs["assistant_masks"]

"""Tools in conversations: calls are trained, results are not, and both are written exactly as other software writes them."""

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
from fledge.tokenizer.native_templates import CHATML, INST
from fledge.tokenizer.template import TextSegment, ToolCall
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
        for content, calls, results in steps:
            messages.append(Message("assistant", content, tuple(calls)))
            messages += [Message("tool", result) for result in results]
        messages.append(Message("assistant", answer))
    return messages


def turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages in OpenAI's form."""
    turn_dicts = []
    for message in messages:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            turn["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": json.loads(call.arguments)}}
                for call in message.tool_calls
            ]
        turn_dicts.append(turn)
    return turn_dicts


def text_of(segments: Sequence[TextSegment]) -> str:
    """The text of all segments."""
    return "".join(segment.text for segment in segments)


def trained(segments: Sequence[TextSegment]) -> str:
    """The text of the segments with a weight."""
    return "".join(segment.text for segment in segments if segment.weight)


def call_text(call: ToolCall) -> str:
    """A tool call in the form of Hermes and Qwen."""
    arguments = json.dumps(json.loads(call.arguments), ensure_ascii=False)
    return f'<tool_call>\n{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": {arguments}}}\n</tool_call>'


def answer_text(message: Message) -> str:
    """The trained text of an assistant's turn in the form of Hermes and Qwen."""
    return "\n".join([*([message.content] if message.content else []), *map(call_text, message.tool_calls)]) + "<|im_end|>"


@pytest.fixture(scope="module")
def exported(chatml: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The saved ChatML tokenizer, loaded by transformers."""
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


def test_chatml_writes_tools_exactly_as_hermes_and_qwen_do() -> None:
    segments = CHATML.render(TALK, ADD)
    assert text_of(segments) == WRITTEN
    assert [(segment.text, segment.turn) for segment in segments if segment.weight] == [
        (WRITTEN[WRITTEN.index("Let me") : WRITTEN.index("<|im_end|>\n<|im_start|>user\n<tool_r")], 2),
        ("<|im_end|>", 2),
        ("3 and 7", 5),
        ("<|im_end|>", 5),
    ]
    assert text_of(CHATML.prompt(TALK[:5], ADD)) == WRITTEN[: WRITTEN.index("3 and 7")]
    assert text_of(CHATML.render(TALK[1:2], ADD)).startswith("<|im_start|>system\n# Tools\n")


@given(conversations())
def test_chatml_without_tools_writes_only_roles_and_contents(messages: list[Message]) -> None:
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
def test_tool_calls_are_trained_and_tool_results_are_not(messages: list[Message], tools: str | None) -> None:
    segments = CHATML.render(messages, tools)
    for index, message in enumerate(messages):
        own = [segment for segment in segments if segment.turn == index]
        assert text_of(own) == (answer_text(message) if message.role == "assistant" else "")
    assert all((segment.weight > 0) == (segment.turn is not None) for segment in segments)


@given(conversations(), TOOLS)
def test_a_prompt_with_tools_is_a_prefix_of_its_training_row(
    chatml: Tokenizer, messages: list[Message], tools: str | None
) -> None:
    tokens, weights = chatml.encode_rendering(CHATML.render(messages, tools))
    for index, message in enumerate(messages):
        if message.role == "assistant":
            prompt, _ = chatml.encode_rendering(CHATML.prompt(messages[:index], tools))
            assert tokens[: len(prompt)] == prompt
            assert (weights[len(prompt) - 1], weights[len(prompt)]) == (0.0, 1.0)


@given(conversations(), TOOLS)
def test_text_in_tools_and_results_cannot_end_or_begin_a_turn(
    chatml: Tokenizer, messages: list[Message], tools: str | None
) -> None:
    tokens, _ = chatml.encode_rendering(CHATML.render(messages, tools))
    groups = [m for i, m in enumerate(messages) if m.role != "tool" or messages[i - 1].role != "tool"]
    expected = len(groups) + (tools not in (None, "[]") and messages[0].role != "system")
    for control in ("<|im_start|>", "<|im_end|>"):
        assert tokens.count(chatml.core.get_vocab()[control]) == expected
    assert tokens.count(chatml.eos_id) == 0


# -- [INST] and templates without tools ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "tools", "message"),
    [
        (TALK[:2], ADD, "does not support tools"),
        (TALK[:3], None, "does not support tool calls in turn 3"),
        ((TALK[1], TALK[3]), None, "does not support role 'tool' in turn 2"),
    ],
)
def test_the_inst_template_rejects_tools_natively_and_in_jinja(messages: tuple, tools: str | None, message: str) -> None:
    for ask in (INST.render, INST.prompt):
        with pytest.raises(TemplateError) as caught:
            ask(messages, tools)
        assert message in caught.value.what
    with pytest.raises(TemplateError, match="no place for tool"):
        ChatTemplate("tokenizer", INST.jinja, INST.specials).render(messages, tools)
    assert INST.render(TALK[:2], "[]") == INST.render(TALK[:2])


TEMPLATE_WITHOUT_TOOLS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}"
    "{{ '<|im_start|>assistant:' if add_generation_prompt else '' }}"
)


def jinja_template(text: str) -> ChatTemplate:
    """A template that comes with a tokenizer."""
    return ChatTemplate("tokenizer", text, ("<|im_start|>", "<|im_end|>"))


def test_a_template_that_never_mentions_tools_rejects_them() -> None:
    for ask in (jinja_template(TEMPLATE_WITHOUT_TOOLS).render, jinja_template(TEMPLATE_WITHOUT_TOOLS).prompt):
        with pytest.raises(TemplateError, match="does not support tools"):
            ask(TALK[:2], ADD)
        with pytest.raises(TemplateError, match="does not support the tool calls of turn 3"):
            ask(TALK)
    assert trained(jinja_template(TEMPLATE_WITHOUT_TOOLS).render((*TALK[:2], TALK[5]), "[]")) == "3 and 7<|im_end|>"
    assert text_of(jinja_template("{{ tools is none }}").prompt(TALK[:2], "[]")) == "True"


@pytest.mark.parametrize("tools", ["[", "3", '{"name": "add"}', "[" * 100_000])
def test_tools_that_are_not_a_json_list_raise_a_template_error(tools: str) -> None:
    for template in (CHATML, jinja_template(CHATML.jinja)):
        with pytest.raises(TemplateError, match=r"the tools are not JSON|the tools are (int|dict), not a list"):
            template.render(TALK[:2], tools)


def test_call_arguments_that_are_not_json_raise_a_template_error() -> None:
    messages = (TALK[1], Message("assistant", "", (ToolCall("add", "1,"),)))
    for template in (CHATML, jinja_template(CHATML.jinja)):
        with pytest.raises(TemplateError, match="the arguments of 'add' in turn 2 are not JSON"):
            template.render(messages)


# -- Jinja templates ----------------------------------------------------------------------------------------------------


def test_a_jinja_template_receives_calls_in_openai_form_and_parsed_tools() -> None:
    options = "indent=1, sort_keys=true, separators=(',', ':'), ensure_ascii=true"
    show = jinja_template(f"{{{{ [messages, tools] | tojson({options}) }}}}{{# tool_calls #}}")
    shown = text_of(show.prompt(TALK, ADD))
    assert json.loads(shown) == [turns(TALK), json.loads(ADD)]
    expected = json.dumps([turns(TALK), json.loads(ADD)], indent=1, sort_keys=True, separators=(",", ":"))
    assert shown == expected


@given(conversations(), TOOLS)
def test_the_exported_chatml_template_trains_the_same_text_as_the_native_one(
    messages: list[Message], tools: str | None
) -> None:
    def trained_by_turn(segments: Sequence[TextSegment]) -> list[tuple[int | None, str]]:
        turn_numbers = dict.fromkeys(segment.turn for segment in segments if segment.weight)
        return [
            (turn, text_of([segment for segment in segments if segment.turn == turn and segment.weight]))
            for turn in turn_numbers
        ]

    assert trained_by_turn(jinja_template(CHATML.jinja).render(messages, tools)) == trained_by_turn(
        CHATML.render(messages, tools)
    )


def test_marked_text_has_no_turn_when_marks_and_assistant_turns_differ_in_number() -> None:
    twice = (
        "{% for m in messages %}{{ m.role + ':' }}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{% endgeneration %}, {% generation %}ok<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    talk = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", ""))
    segments = jinja_template(twice).render(talk)
    assert [(segment.text, segment.turn) for segment in segments if segment.weight] == [
        ("b", None), ("ok<|im_end|>", None), ("ok<|im_end|>", None),
    ]  # fmt: skip
    once = jinja_template(twice.replace("{% endgeneration %}, {% generation %}", ", "))
    assert [(segment.text, segment.turn) for segment in once.render(talk) if segment.weight] == [
        ("b, ok<|im_end|>", 1), (", ok<|im_end|>", 3),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def minimind(shared_data: Path) -> Tokenizer:
    """The real minimind tokenizer."""
    return load_tokenizer(shared_data / "tokenizers" / "minimind")


@pytest.fixture(scope="module")
def minimind_theirs(shared_data: Path) -> Any:
    """The real minimind tokenizer, loaded by transformers."""
    return AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "minimind")


def test_chatml_with_tools_equals_the_real_minimind_template_except_for_empty_thoughts(minimind: Tokenizer) -> None:
    """System turn, questions and results have equal text; answers differ by the empty thoughts of minimind."""
    theirs = text_of(minimind.template.render(TALK, ADD))
    assert theirs.replace("<think>\n\n</think>\n\n", "") == WRITTEN


@pytest.mark.parametrize("language", ["en", "zh"])
def test_real_tool_calls_have_the_ids_of_transformers_with_the_minimind_template(
    shared_data: Path, minimind: Tokenizer, minimind_theirs: Any, language: str
) -> None:
    """The ids of every row of glaive_toolcall_*, and the supervised parts of each turn."""
    file = shared_data / "llamafactory" / f"glaive_toolcall_{language}_demo.json"
    calls = 0
    for row in json.loads(file.read_text(encoding="utf-8")):
        item = parse_row(row, Source(path="x"), "sft")
        assert isinstance(item, Conversation)
        segments = minimind.template.render(item.messages, item.tools)
        theirs = minimind_theirs.apply_chat_template(
            turns(item.messages), tools=json.loads(item.tools) if item.tools else None, return_dict=False
        )
        assert minimind.encode_rendering(segments)[0] == theirs
        for index, message in enumerate(item.messages):
            own = text_of([segment for segment in segments if segment.turn == index])
            assert own == (answer_text(message) if message.role == "assistant" else "")
            calls += len(message.tool_calls)
    assert calls == {"en": 211, "zh": 216}[language]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_real_tool_calls_have_the_ids_and_mask_of_transformers_with_the_exported_chatml(
    shared_data: Path, chatml: Tokenizer, exported: Any, language: str
) -> None:
    """Ids and the mask of trained tokens, against transformers' own mask of {% generation %}."""
    file = shared_data / "llamafactory" / f"glaive_toolcall_{language}_demo.json"
    for row in json.loads(file.read_text(encoding="utf-8"))[:40]:
        item = parse_row(row, Source(path="x"), "sft")
        assert isinstance(item, Conversation)
        tokens, weights = chatml.encode_rendering(CHATML.render(item.messages, item.tools))
        theirs = exported.apply_chat_template(
            turns(item.messages), tools=json.loads(item.tools) if item.tools else None, return_assistant_tokens_mask=True
        )
        assert tokens == theirs["input_ids"]
        assert [int(weight) for weight in weights] == theirs["assistant_masks"]

"""The chat templates that fledge renders without Jinja: ChatML with tools as in Hermes and Qwen, Llama 2's [INST], and the one
of encoder–decoder models."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import takewhile
from typing import Any

from fledge.tokenizer.message import Message, TemplateError, TextSegment, parse_arguments, to_json
from fledge.tokenizer.template import ChatTemplate

# The wording that Hermes and Qwen models are trained with, and that parsers of tool calls expect.
TOOLS_BEFORE = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
TOOLS_AFTER = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)


def _chatml(messages: Sequence[Message], tools: list[Any] | None, generate: bool) -> list[TextSegment]:
    """`<|im_start|>role⏎content<|im_end|>⏎` for each turn. Tools are described in the system turn. Consecutive tool results
    share one user turn."""
    segments: list[TextSegment] = []
    if tools:
        system = messages[0].content + "\n\n" if messages and messages[0].role == "system" else ""
        descriptions = "".join(f"\n{to_json(tool)}" for tool in tools)
        segments += _chatml_turn(f"system\n{system}{TOOLS_BEFORE}{descriptions}{TOOLS_AFTER}")
    for i, message in enumerate(messages):
        if message.role == "assistant":
            segments += _chatml_answer(message, i)
        elif message.role == "tool":
            if i == 0 or messages[i - 1].role != "tool":
                segments += _chatml_turn("user" + "".join(_results(messages[i:])))
        elif not (tools and i == 0 and message.role == "system"):
            segments += _chatml_turn(f"{message.role}\n{message.content}")
    if generate:
        segments += [TextSegment("<|im_start|>", 0.0, False), TextSegment("assistant\n", 0.0, True)]
    return [segment for segment in segments if segment.text]


def _chatml_turn(text: str) -> list[TextSegment]:
    return [
        TextSegment("<|im_start|>", 0.0, False),
        TextSegment(text, 0.0, True),
        TextSegment("<|im_end|>", 0.0, False),
        TextSegment("\n", 0.0, False),
    ]


def _chatml_answer(message: Message, turn: int) -> list[TextSegment]:
    calls = "\n".join(
        f'<tool_call>\n{{"name": {to_json(call.name)}, "arguments": {to_json(parse_arguments(call, turn + 1))}}}\n</tool_call>'
        for call in message.tool_calls
    )
    content = message.full_content
    between = "\n" if content and calls else ""
    return [
        TextSegment("<|im_start|>", 0.0, False), TextSegment("assistant\n", 0.0, True),
        TextSegment(content + between + calls, 1.0, True, turn), TextSegment("<|im_end|>", 1.0, False, turn),
        TextSegment("\n", 0.0, False),
    ]  # fmt: skip


def _results(messages: Sequence[Message]) -> Iterator[str]:
    """The tool results at the beginning of the messages."""
    for message in takewhile(lambda message: message.role == "tool", messages):
        yield f"\n<tool_response>\n{message.content}\n</tool_response>"


def _inst(messages: Sequence[Message], tools: list[Any] | None, generate: bool) -> list[TextSegment]:
    """`<s>[INST] <<SYS>>…<</SYS>> question [/INST] answer</s>`, one line for each round. Tools cannot be expressed.

    The blank before an answer is part of it: tokenizers join it to the first word."""
    segments: list[TextSegment] = []
    system = ""
    if tools:
        raise TemplateError("the [INST] template does not support tools")
    for i, message in enumerate(messages):
        if message.role == "system" and i == 0:
            system = message.content
        elif message.role == "user":
            segments.append(TextSegment(("\n" if segments else "") + "<s>[INST]", 0.0, False))
            before = " "
            if system:
                segments += [
                    TextSegment(" <<SYS>>", 0.0, False),
                    TextSegment(f"\n{system}\n", 0.0, True),
                    TextSegment("<</SYS>>", 0.0, False),
                ]
                system, before = "", "\n\n"
            segments += [TextSegment(f"{before}{message.content} ", 0.0, True), TextSegment("[/INST]", 0.0, False)]
        elif message.role == "assistant" and not message.tool_calls:
            segments += [TextSegment(f" {message.full_content}", 1.0, True, i), TextSegment("</s>", 1.0, False, i)]
        else:
            content = "tool calls" if message.tool_calls else f"role '{message.role}'"
            raise TemplateError(f"the [INST] template does not support {content} in turn {i + 1}")
    return [segment for segment in segments if segment.text]


REASONING_JINJA = (  # as Message.full_content
    "{% if message['reasoning_content'] %}{{ '<think>\n' + message['reasoning_content'] + '\n</think>\n\n' }}{% endif %}"
)
CHATML_JINJA = (
    "{% if tools %}"
    "{{ '<|im_start|>system\n' }}"
    "{% if messages and messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\n\n' }}{% endif %}"
    f"{{{{ {json.dumps(TOOLS_BEFORE)} }}}}"
    "{% for tool in tools %}{{ '\n' + (tool | tojson) }}{% endfor %}"
    f"{{{{ {json.dumps(TOOLS_AFTER)} + '<|im_end|>\n' }}}}"
    "{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant\n' }}"
    "{% generation %}"
    f"{REASONING_JINJA}"
    "{{ message['content'] or '' }}"
    "{% for call in message['tool_calls'] or [] %}"
    "{{ '\n' if message['content'] or message['reasoning_content'] or not loop.first else '' }}"
    "{{ '<tool_call>\n{\"name\": ' + (call['function']['name'] | tojson) + ', \"arguments\": ' }}"
    "{{ (call['function']['arguments'] | tojson) + '}\n</tool_call>' }}"
    "{% endfor %}"
    "{{ '<|im_end|>' }}"
    "{% endgeneration %}"
    "{{ '\n' }}"
    "{% elif message['role'] == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1]['role'] != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\n<tool_response>\n' + message['content'] + '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1]['role'] != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% elif not (tools and loop.first and message['role'] == 'system') %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INST_JINJA = (
    "{% if tools %}{{ raise_exception('this template has no place for tools') }}{% endif %}"
    "{% set ns = namespace(system='', first=true) %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and loop.first %}{% set ns.system = message['content'] %}"
    "{% elif message['role'] == 'user' %}"
    "{{ ('' if ns.first else '\n') + '<s>[INST] ' }}{% set ns.first = false %}"
    "{% if ns.system %}{{ '<<SYS>>\n' + ns.system + '\n<</SYS>>\n\n' }}{% set ns.system = '' %}{% endif %}"
    "{{ message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' and not message['tool_calls'] %}"
    "{% generation %}{{ ' ' }}"
    f"{REASONING_JINJA}"
    "{{ message['content'] + '</s>' }}{% endgeneration %}"
    "{% else %}{{ raise_exception('this template has no place for tool calls or role ' + message['role']) }}{% endif %}"
    "{% endfor %}"
)

SEQ2SEQ_JINJA = (
    "{% if tools %}{{ raise_exception('this template has no place for tools') }}{% endif %}"
    "{% for message in messages %}"
    "{% if loop.last and message['role'] == 'assistant' and not add_generation_prompt %}"
    "{{ END + START }}{% generation %}"
    f"{REASONING_JINJA}"
    "{{ message['content'] + END }}{% endgeneration %}"
    "{% else %}"
    "{{ '' if loop.first else '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    f"{REASONING_JINJA}"
    "{% endif %}"
    "{{ message['content'] }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ END + START }}{% endif %}"
)

CHATML = ChatTemplate("chatml", CHATML_JINJA, ("<|im_start|>", "<|im_end|>"), render_native=_chatml)
INST = ChatTemplate("inst", INST_JINJA, ("<s>", "</s>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"), render_native=_inst)
NATIVE = {template.name: template for template in (CHATML, INST)}
SEQ2SEQ = "seq2seq"  # the name of the template of encoder–decoders, whose control tokens are those of the model


def seq2seq_template(end: str, start: str) -> ChatTemplate:
    """The template of an encoder–decoder: the turns before the answer, one line each, `end`, `start`, the answer, `end`. So a
    single question is the source as it is. `start` is the token with which the model's decoder starts."""
    jinja = SEQ2SEQ_JINJA.replace("END", json.dumps(end)).replace("START", json.dumps(start))
    render = partial(_seq2seq, end=end, start=start)
    return ChatTemplate(SEQ2SEQ, jinja, (end, start), render_native=render, decoder_start=start)


def _seq2seq(
    messages: Sequence[Message], tools: list[Any] | None, generate: bool, *, end: str, start: str
) -> list[TextSegment]:
    """The source and, unless an answer is to be generated, the answer in the last turn."""
    if tools:
        raise TemplateError("the seq2seq template does not support tools")
    for number, message in enumerate(messages, 1):
        if message.tool_calls or message.role not in ("system", "user", "assistant"):
            content = "tool calls" if message.tool_calls else f"role '{message.role}'"
            raise TemplateError(f"the seq2seq template does not support {content} in turn {number}")
    if not generate and (not messages or messages[-1].role != "assistant"):
        raise TemplateError("the seq2seq template needs an answer as the last turn")
    before = messages if generate else messages[:-1]
    source = "\n".join(message.full_content for message in before)
    segments = [TextSegment(source, 0.0, True), TextSegment(end + start, 0.0, False)]
    if not generate:
        turn = len(messages) - 1
        segments += [TextSegment(messages[turn].full_content, 1.0, True, turn), TextSegment(end, 1.0, False, turn)]
    return [segment for segment in segments if segment.text]

"""The chat templates that fledge renders without Jinja: ChatML with tools as in Hermes and Qwen, and Llama 2's [INST]."""

import json
from collections.abc import Iterator, Sequence
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

CHATML = ChatTemplate("chatml", CHATML_JINJA, ("<|im_start|>", "<|im_end|>"), render_native=_chatml)
INST = ChatTemplate("inst", INST_JINJA, ("<s>", "</s>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"), render_native=_inst)
NATIVE = {template.name: template for template in (CHATML, INST)}

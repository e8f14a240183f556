"""An Ollama Modelfile beside a GGUF file: FROM, stop parameters, and a TEMPLATE where the chat template is one that is known.

A template is recognised by what it renders, not by its text: conversations must come out equal.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fledge.export.comparison import prompts
from fledge.tokenizer import Message, Tokenizer

Render = Callable[[Sequence[Message]], str]


@dataclass(frozen=True)
class OllamaTemplate:
    """A chat template in Ollama's language (Go), the same in Python, and the pattern of a system turn at the beginning."""

    go: str
    render: Render
    system: str


def _chatml(messages: Sequence[Message]) -> str:
    turns = [f"<|im_start|>{message.role}\n{message.content}<|im_end|>\n" for message in messages]
    return "".join(turns) + "<|im_start|>assistant\n"


def _llama3(messages: Sequence[Message]) -> str:
    turns = [f"<|start_header_id|>{message.role}<|end_header_id|>\n\n{message.content}<|eot_id|>" for message in messages]
    return "".join(turns) + "<|start_header_id|>assistant<|end_header_id|>\n\n"


OLLAMA_TEMPLATES = {
    "ChatML": OllamaTemplate(
        "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n",
        _chatml,
        r"<\|im_start\|>system\n(.*?)<\|im_end\|>\n",
    ),
    "Llama 3": OllamaTemplate(
        "{{- range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n{{ .Content }}<|eot_id|>{{ end }}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        _llama3,
        r"<\|start_header_id\|>system<\|end_header_id\|>\n\n(.*?)<\|eot_id\|>",
    ),
}


@dataclass(frozen=True)
class FoundTemplate:
    """A template of Ollama that equals a chat template, and the system message that the latter adds where there is none."""

    name: str
    template: OllamaTemplate
    default_system: str | None


def find_template(tokenizer: Tokenizer) -> FoundTemplate | None:
    """The entry of `OLLAMA_TEMPLATES` that renders conversations as the tokenizer does; None if there is none."""
    conversations = prompts(tokenizer)
    if not any(messages[0].role == "system" for messages in conversations):
        return None  # a template without system turns would be sent some
    for name, template in OLLAMA_TEMPLATES.items():
        for system in (None, _default_system(tokenizer, template)):
            if all(_equal(tokenizer, messages, template, system) for messages in conversations):
                return FoundTemplate(name, template, system)
    return None


def _rendered(tokenizer: Tokenizer, messages: Sequence[Message]) -> str:
    """The prompt of a conversation as text, without a BOS token, which llama.cpp writes itself."""
    text = "".join(segment.text for segment in tokenizer.template.prompt(messages))
    return text.removeprefix(tokenizer.bos) if tokenizer.bos and tokenizer.document_start else text


def _default_system(tokenizer: Tokenizer, template: OllamaTemplate) -> str | None:
    """The system message that the chat template writes where a conversation has none."""
    found = re.match(template.system, _rendered(tokenizer, [Message("user", "1")]), re.DOTALL)
    return found[1] if found else None


def _equal(tokenizer: Tokenizer, messages: Sequence[Message], template: OllamaTemplate, system: str | None) -> bool:
    if system is not None and messages[0].role != "system":
        return _rendered(tokenizer, messages) == template.render([Message("system", system), *messages])
    return _rendered(tokenizer, messages) == template.render(messages)


def modelfile(gguf_name: str, tokenizer: Tokenizer, max_positions: int) -> tuple[str, str]:
    """The text of a Modelfile, and a line about its template."""
    lines = [f"FROM ./{gguf_name}", f"PARAMETER num_ctx {max_positions}"]
    stops = [str(tokenizer.core.id_to_token(token)) for token in sorted(tokenizer.stop_ids)]
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in stops]
    found = find_template(tokenizer)
    if found is not None:
        lines.append(f"TEMPLATE {_quoted(found.template.go)}")
        lines += [] if found.default_system is None else [f"SYSTEM {_quoted(found.default_system)}"]
        about = f"Modelfile: template {found.name}, {len(stops)} stop tokens"
    elif not tokenizer.template.jinja:
        lines.append('TEMPLATE "{{ .Prompt }}"')
        about = "Modelfile: this model has no chat template and continues texts"
    else:
        lines.append("# No TEMPLATE: the chat template is none that is known here. The GGUF file holds it as Jinja;")
        lines.append("# write a TEMPLATE that renders the same, or Ollama guesses one.")
        about = "Modelfile: no TEMPLATE, because the chat template is none that is known here; write one"
    return "\n".join(lines) + "\n", about


def _quoted(text: str) -> str:
    """A text as a value in a Modelfile, which knows no escapes inside of triple quotes."""
    return f'"""{text}"""' if "\n" in text or '"' in text else f'"{text}"'

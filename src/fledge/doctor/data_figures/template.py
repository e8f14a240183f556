"""Whether prompts are rendered in training as they are for answering: by `fledge chat`, and by other software."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fledge.data.parsing.items import Dialogue
from fledge.diagnosis.case import Figure
from fledge.doctor.data_figures.rows import RowAgain
from fledge.errors import FledgeError
from fledge.run import RunDirectory, StageDirectory
from fledge.tokenizer import Message, TemplateError, Tokenizer, load_tokenizer
from fledge.tokenizer.jinja_template import JinjaTemplate
from fledge.tokenizer.message import parse_tools

TEMPLATE_FILE = "chat_template.jinja"
TOKENS, TEXT, REFUSED = "as tokens by fledge", "as text by the exported template", "refused for answering"


def serving_folder(stage: StageDirectory) -> Path:
    """The folder with the tokenizer that answers: of the newest model of a stage, else of its run."""
    model = stage.newest_model()
    return model if model is not None and (model / "tokenizer.json").exists() else RunDirectory(stage.root.parent).tokenizer


def template_figures(rows: Sequence[RowAgain], tokenizer: Tokenizer, serving: Path | None) -> dict[str, Figure]:
    """`data/template_differs`: of conversations that were built whole, those whose prompt is another one for answering.

    `serving`: the folder of the tokenizer that answers; None: the one of training. Compared are the tokens that the sequence
    was built with and those that generation starts from, and, byte for byte, the text before the answer and the text that the
    exported Jinja template writes.
    """
    whole = [row for row in rows if row.is_whole and isinstance(row.item, Dialogue) and row.built]
    if not whole:
        return {}
    try:
        answering = tokenizer if serving is None else load_tokenizer(serving)
    except FledgeError as error:
        return {
            "data/template_differs": Figure(1.0, "data", note=f"the tokenizer for answering cannot be loaded: {error.what}")
        }
    exported = _exported(answering, serving)
    found = Counter(reason for row in whole if (reason := _difference(row, tokenizer, answering, exported)))
    differing = sum(found.values())
    how = "; ".join(f"{reason}: {count}" for reason, count in found.most_common())
    note = f"{len(whole)} conversations" + (f", different {how}" if how else "")
    return {"data/template_differs": Figure(differing / len(whole), "data", note=note)}


def _exported(answering: Tokenizer, folder: Path | None) -> JinjaTemplate | None:
    """The Jinja template that other software reads, from its file if there is one; None for a tokenizer without a template."""
    file = None if folder is None else folder / TEMPLATE_FILE
    text = file.read_text(encoding="utf-8") if file is not None and file.exists() else answering.template.jinja
    template = answering.template
    return JinjaTemplate(template.name, text, template.variables, template.date) if text else None


def _difference(row: RowAgain, tokenizer: Tokenizer, answering: Tokenizer, exported: JinjaTemplate | None) -> str:
    """How the prompt of a row is another one for answering; empty if it is the same."""
    item = row.item
    assert isinstance(item, Dialogue)
    turns = list(item.turns) if item.endings else list(item.turns[:-1])
    ending = item.endings[0] if item.endings else item.turns[-1]
    try:
        prompt = np.asarray(answering.encode_prompt(turns, item.tools))
        text = _text_before_answer([*turns, ending], item.tools, tokenizer)
        written = None if exported is None else exported.text(turns, parse_tools(item.tools), True)
    except TemplateError:
        return REFUSED
    built = row.built[0][0]
    if len(built) <= len(prompt) or not np.array_equal(built[: len(prompt)], prompt):
        return TOKENS
    return TEXT if written is not None and written != text else ""


def _text_before_answer(messages: Sequence[Message], tools: str | None, tokenizer: Tokenizer) -> str:
    """The text of a conversation in training up to its last answer."""
    segments = tokenizer.template.rendering(messages, tools, only_last=True).segments
    begin = max((place + 1 for place, segment in enumerate(segments) if segment.weight), default=len(segments))
    while begin and segments[begin - 1].weight:
        begin -= 1
    return "".join(segment.text for segment in segments[:begin])

"""Templates that rewrite earlier turns, or write prompts unlike their rows: text and tokens are those of transformers, answers
are trained, and what a template leaves out or changes is told or named as the cause of a refusal."""

import datetime
import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from fledge.tokenizer import ChatTemplate, Message, TemplateError, Tokenizer, load_tokenizer
from fledge.tokenizer.message import LEFT_OUT, REFUSED, UNENDED, ToolCall
from tests.support.template_families import ENDS, FAMILIES, TOKENS

TOOLS = [{"type": "function", "function": {"name": "add", "description": "sum", "parameters": {
    "type": "object", "properties": {"x": {"type": "integer"}}}}}]  # fmt: skip
U1, A1, U2, A2 = Message("user", "one?"), Message("assistant", "1."), Message("user", "two?"), Message("assistant", "2.")
THINKING = [
    U1,
    Message("assistant", "<think>\nfirst\n</think>\n\n1."),
    U2,
    Message("assistant", "<think>\nsecond\n</think>\n\n2."),
]
CALL = Message("assistant", "", (ToolCall("add", '{"x": 1}', "abcdefghi"),))
TALKS: dict[str, list[Message]] = {
    "plain": [U1, A1],
    "system": [Message("system", "be short"), U1, A1],
    "multi-turn": [U1, A1, U2, A2],
    "one thought": THINKING[2:],
    "thinking": THINKING,
    "tools": [U1, CALL, Message("tool", "7", name="add", tool_call_id="abcdefghi"), A1, U2, A2],
}


def turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as transformers takes them."""
    result: list[dict[str, Any]] = []
    for message in messages:
        turn = {"role": message.role, "content": message.content, "name": message.name, "tool_call_id": message.tool_call_id}
        if message.tool_calls:
            turn["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": json.loads(call.arguments)}}
                for call in message.tool_calls
            ]
        result.append({key: value for key, value in turn.items() if value is not None})
    return result


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, chatml: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with the template of each family."""
    folder = tmp_path_factory.mktemp(request.param) / request.param
    folder.mkdir()
    core = type(chatml.core).from_str(chatml.core.to_str())
    core.add_special_tokens(list(TOKENS))
    core.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>",
              "chat_template": FAMILIES[request.param]}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("talk", TALKS)
def test_rows_and_prompts_of_every_family_have_the_tokens_of_transformers(family: Path, talk: str) -> None:
    messages = TALKS[talk]
    ours, theirs = load_tokenizer(family), AutoTokenizer.from_pretrained(family)
    tools = TOOLS if talk == "tools" else None
    tools_text = json.dumps(tools) if tools else None
    try:
        rendering = ours.template.rendering(messages, tools_text)
    except TemplateError as error:
        expected = {"tools": "does not support tools", "system": "there is no place for a system turn"}
        assert expected[talk] in str(error) and error.reason == REFUSED
        return
    expected_ids = theirs.apply_chat_template(turns(messages), tools=tools, return_dict=False)
    assert "".join(segment.text for segment in rendering.segments) == theirs.apply_chat_template(
        turns(messages), tools=tools, tokenize=False
    )
    assert ours.encode_rendering(rendering.segments)[0] == expected_ids
    for turn, message in enumerate(messages):
        if message.role == "assistant":
            prompt = theirs.apply_chat_template(
                turns(messages[:turn]), tools=tools, add_generation_prompt=True, return_dict=False
            )
            assert ours.encode_prompt(messages[:turn], tools_text) == prompt
            trained = "".join(segment.text for segment in rendering.segments if segment.turn == turn)
            visible = message.content.rpartition("</think>")[2].strip()
            assert visible in trained
            if turn == len(messages) - 1:
                assert trained.endswith(visible + ENDS.get(family.name, "<e>"))
            elif visible and family.name != "ended-by-the-next-turn":
                assert re.search(re.escape(visible) + r"\s?(<m>)?<(e|eos)>$", trained)


NOTES: dict[str, dict[str, list[str]]] = {
    "thoughts-of-the-last-answer": {"thinking": ["the chat template leaves out thoughts"]},
    "thoughts-thrown-away": {
        "plain": ["generation starts from another text than in training"],
        "thinking": ["generation starts from another text than in training", "the chat template leaves out thoughts"],
    },
    "ended-by-the-next-turn": {"plain": ["the chat template does not end the last answer"]},
    "empty-thought-in-the-prompt": {"thinking": ["generation starts from another text than in training"], "multi-turn": []},
    "token-behind-the-conversation": {"multi-turn": [], "thinking": []},
}


@pytest.mark.parametrize(("name", "talk"), [(name, talk) for name, talks in NOTES.items() for talk in talks])
def test_what_a_template_leaves_out_or_changes_is_noted(name: str, talk: str) -> None:
    template = ChatTemplate(name, FAMILIES[name], TOKENS, variables=(("bos_token", "<bos>"), ("eos_token", "<eos>")))
    reasons = {note.reason for note in template.rendering(TALKS[talk]).notes}
    assert sorted(reasons) == NOTES[name][talk]


def test_thoughts_that_are_left_out_are_named_with_their_turn() -> None:
    template = ChatTemplate("own", FAMILIES["thoughts-of-the-last-answer"], TOKENS)
    (note,) = template.rendering(THINKING).notes
    assert (note.detail, note.amount) == ("turn 2: 'first'", 5)


CAUSES = {
    LEFT_OUT: "{% for m in messages %}<b>{{ m.role }}:{{ m.content if loop.last or m.role == 'user' }}<e>{% endfor %}",
    UNENDED: "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
             "{% if add_generation_prompt %}assistant: {% endif %}",
    REFUSED: "{{ raise_exception('one round only') if messages | length > 2 }}{% for m in messages %}<b>{{ m.content }}<e>"
             "{% endfor %}{% if add_generation_prompt %}<b>{% endif %}",
}  # fmt: skip


@pytest.mark.parametrize("reason", CAUSES)
def test_each_cause_of_a_refusal_has_its_own_message(reason: str) -> None:
    jinja = CAUSES[reason] + ("{% if add_generation_prompt %}<b>assistant:{% endif %}" if reason == LEFT_OUT else "")
    with pytest.raises(TemplateError) as caught:
        ChatTemplate("own", jinja, TOKENS).rendering(TALKS["multi-turn"])
    assert caught.value.reason == reason
    assert {LEFT_OUT: "text of turn 2: '1.'", UNENDED: "ends turn 2", REFUSED: "one round only"}[reason] in str(caught.value)


def test_only_the_last_answer_has_to_be_found_if_only_it_is_trained() -> None:
    jinja = CAUSES[LEFT_OUT] + "{% if add_generation_prompt %}<b>assistant:{% endif %}"
    segments = ChatTemplate("own", jinja, TOKENS).rendering(TALKS["multi-turn"], only_last=True).segments
    assert [segment.text for segment in segments if segment.weight] == ["2.<e>"]


@given(st.lists(st.text(st.sampled_from("ab <b>e</think>\n.7"), max_size=9), min_size=2, max_size=6))
def test_any_texts_are_trained_exactly_or_refused(texts: list[str]) -> None:
    """Contents that look like the template's own tokens, repeat each other or are cut by it."""
    template = ChatTemplate("own", FAMILIES["thoughts-of-the-last-answer"], TOKENS)
    messages = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts[: len(texts) // 2 * 2])]
    text = "".join(segment.text for segment in template.prompt(messages[:-1]))
    expected, _ = render_jinja_template(
        conversations=[turns(messages[:-1])], chat_template=template.jinja, add_generation_prompt=True
    )
    assert text == expected[0]
    try:
        segments = template.rendering(messages).segments
    except TemplateError as error:
        assert error.reason == LEFT_OUT
        return
    for turn, message in enumerate(messages):
        if message.role == "assistant":
            own = "".join(segment.text for segment in segments if segment.turn == turn)
            assert own.endswith(message.content.rpartition("</think>")[2].strip() + "<e>") or own.endswith("<e>")
            assert own.count("<b>") <= message.content.count("<b>")


def trl_templates() -> list[Path]:
    """The templates that an installed TRL brings."""
    spec = importlib.util.find_spec("trl")
    folders = spec.submodule_search_locations if spec else None
    return sorted(Path(folders[0], "chat_templates").glob("*.jinja")) if folders else []


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("file", trl_templates(), ids=lambda file: file.stem)
def test_real_templates_have_the_text_of_transformers_or_say_why_not(file: Path, talk: str) -> None:
    jinja, messages = file.read_text(encoding="utf-8"), TALKS[talk]
    control = r"<[|｜][^|｜>\n]{1,30}>|<[^<>\n]{1,30}[|｜]>|</?[a-z_]+_turn>|<[|｜][^<>\n]{1,30}[|｜]>"
    specials = tuple(sorted(set(re.findall(control, jinja))))
    variables = {"bos_token": "<s>", "eos_token": "</s>"}
    template = ChatTemplate(file.stem, jinja, (*specials, "<s>", "</s>"), variables=tuple(variables.items()))
    tools = TOOLS if talk == "tools" else None
    try:
        segments = template.rendering(messages, json.dumps(tools) if tools else None).segments
    except TemplateError as error:
        assert re.search(
            "refuses this conversation: .|does not support .*tool|leaves out|no control token that ends", str(error)
        )
        return
    theirs, _ = render_jinja_template(conversations=[turns(messages)], chat_template=jinja, tools=tools, **variables)
    assert "".join(segment.text for segment in segments) == theirs[0]
    trained = "".join(segment.text for segment in segments if segment.weight)
    assert all(
        message.content.rpartition("</think>")[2].strip() in trained for message in messages if message.role == "assistant"
    )


def test_a_date_can_be_set() -> None:
    jinja = FAMILIES["empty-thought-in-the-prompt"]
    template = ChatTemplate("own", jinja, TOKENS, date=datetime.date(2024, 2, 29))
    assert "Today is 29 February 2024" in template.render(TALKS["plain"])[0].text
    today = datetime.datetime.now().strftime("%d %B %Y")
    assert today in ChatTemplate("own", jinja, TOKENS).render(TALKS["plain"])[0].text

"""Chat templates: text, tokens and supervision agree with each other and with transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from fledge.tokenizer import Message, TemplateError, Tokenizer, load_tokenizer
from tests.support.templates import with_template

ORDINARY = st.text(st.sampled_from("ab 好，.12\nZ"), min_size=1, max_size=12).map(str.strip).filter(bool)
CONTROL = ("<|im_end|>", "<|im_start|>", "<|endoftext|>", "</s>", "<s>", "[/INST]", "<<SYS>>")
ANYTHING = st.one_of(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=30),
    st.lists(st.sampled_from([*CONTROL, "\n", " ", "好", "x"]), min_size=1).map("".join),
)


def conversations(text: st.SearchStrategy[str]) -> st.SearchStrategy[list[Message]]:
    """System turn or none, then one to three rounds."""
    rounds = st.lists(st.tuples(text, text), min_size=1, max_size=3)
    return st.tuples(st.none() | text, rounds).map(
        lambda drawn: [
            *([Message("system", drawn[0])] if drawn[0] is not None else []),
            *(Message(role, content) for pair in drawn[1] for role, content in zip(("user", "assistant"), pair, strict=True)),
        ]
    )


def turns(messages: Sequence[Message]) -> list[dict[str, str]]:
    """The messages in OpenAI's form."""
    return [{"role": message.role, "content": message.content} for message in messages]


def answers(messages: Sequence[Message], end: str, before: str = "") -> str:
    """All assistant contents, each followed by the end token."""
    return "".join(before + message.content + end for message in messages if message.role == "assistant")


def before_answer(tokenizer: Tokenizer) -> str:
    """What the template writes before an answer as a part of it."""
    return " " if tokenizer.template.name == "inst" else ""


def supervised(tokenizer: Tokenizer, messages: Sequence[Message]) -> str:
    """The text of the tokens with a weight."""
    tokens, weights = tokenizer.encode_conversation(messages)
    return tokenizer.decode([token for token, weight in zip(tokens, weights, strict=True) if weight])


@pytest.fixture(scope="session", params=["chatml", "inst"])
def native(request: pytest.FixtureRequest) -> Tokenizer:
    """A tokenizer with each native template."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def exported(native: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The saved native tokenizer, loaded by transformers."""
    folder = tmp_path_factory.mktemp(native.template.name)
    native.save(folder)
    return AutoTokenizer.from_pretrained(folder)


@given(conversations(ANYTHING))
def test_native_text_equals_the_exported_template_in_transformers(
    native: Tokenizer, exported: Any, messages: list[Message]
) -> None:
    text = "".join(segment.text for segment in native.template.render(messages))
    assert text == exported.apply_chat_template(turns(messages), tokenize=False)
    prompt = "".join(segment.text for segment in native.template.prompt(messages[:-1]))
    assert prompt == exported.apply_chat_template(turns(messages[:-1]), tokenize=False, add_generation_prompt=True)


@given(conversations(ORDINARY))
def test_prompts_have_the_tokens_of_transformers(native: Tokenizer, exported: Any, messages: list[Message]) -> None:
    first = messages[: 2 if messages[0].role == "system" else 1]
    theirs = exported.apply_chat_template(turns(first), add_generation_prompt=True, return_dict=False)
    assert native.encode_prompt(first) == theirs
    assert native.encode_conversation(messages)[0] == exported.apply_chat_template(turns(messages), return_dict=False)
    theirs = exported.apply_chat_template(turns(messages[:-1]), add_generation_prompt=True, return_dict=False)
    assert native.encode_prompt(messages[:-1]) == theirs


@given(st.text(st.sampled_from("\n a好1"), min_size=1, max_size=8), st.none() | ORDINARY)
def test_a_question_with_any_white_space_has_the_tokens_of_transformers(
    native: Tokenizer, exported: Any, question: str, system: str | None
) -> None:
    messages = [*([Message("system", system)] if system else []), Message("user", question)]
    theirs = exported.apply_chat_template(turns(messages), add_generation_prompt=True, return_dict=False)
    assert native.encode_prompt(messages) == theirs


@given(conversations(ANYTHING))
def test_a_prompt_is_always_a_prefix_of_its_training_row(native: Tokenizer, messages: list[Message]) -> None:
    tokens, weights = native.encode_conversation(messages)
    assert len(tokens) == len(weights)
    for i, message in enumerate(messages):
        if message.role == "assistant":
            prompt = native.encode_prompt(messages[:i])
            assert tokens[: len(prompt)] == prompt
            assert weights[len(prompt)] == 1.0
            assert weights[len(prompt) - 1] == 0.0


@given(conversations(ANYTHING))
def test_exactly_the_answers_and_their_end_tokens_are_trained(native: Tokenizer, messages: list[Message]) -> None:
    end = native.decode([native.eot_id])
    assert supervised(native, messages) == answers(messages, end, before_answer(native))


@given(conversations(ANYTHING))
def test_every_trained_segment_has_the_number_of_its_turn(native: Tokenizer, messages: list[Message]) -> None:
    end = native.decode([native.eot_id])
    segments = native.template.render(messages)
    for i, message in enumerate(messages):
        own = "".join(segment.text for segment in segments if segment.turn == i)
        assert own == (before_answer(native) + message.content + end if message.role == "assistant" else "")
    assert all((segment.weight > 0) == (segment.turn is not None) for segment in segments)


@given(conversations(ANYTHING))
def test_text_in_a_message_cannot_end_or_begin_a_turn(native: Tokenizer, messages: list[Message]) -> None:
    tokens, weights = native.encode_conversation(messages)
    ordinary = native.encode_conversation([Message(message.role, "x") for message in messages])[0]
    for special in native.template.specials:
        token = native.core.get_vocab()[special]
        assert tokens.count(token) == ordinary.count(token)
    trained = [token for token, weight in zip(tokens, weights, strict=True) if weight]
    assert trained.count(native.eot_id) == sum(message.role == "assistant" for message in messages)


def test_the_inst_template_names_the_role_that_it_does_not_support(inst: Tokenizer) -> None:
    with pytest.raises(TemplateError, match="does not support role 'tool' in turn 2"):
        inst.encode_conversation([Message("user", "a"), Message("tool", "b")])


def test_the_inst_template_writes_the_format_of_llama_2(inst: Tokenizer) -> None:
    messages = [Message("system", "S"), Message("user", "Q"), Message("assistant", "A"), Message("user", "R")]
    text = "".join(segment.text for segment in inst.template.prompt(messages))
    assert text == "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nQ [/INST] A</s>\n<s>[INST] R [/INST]"


# Templates that come with a tokenizer


@pytest.fixture(scope="session")
def minimind(shared_data: Path) -> Tokenizer:
    """The real minimind tokenizer."""
    return load_tokenizer(shared_data / "tokenizers" / "minimind")


@pytest.fixture(scope="session")
def minimind_theirs(shared_data: Path) -> Any:
    """The real minimind tokenizer, loaded by transformers."""
    return AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "minimind")


@given(messages=conversations(ORDINARY))
def test_the_real_minimind_template_equals_transformers_in_text_and_tokens(
    minimind: Tokenizer, minimind_theirs: Any, messages: list[Message]
) -> None:
    assert minimind.template.name == "tokenizer"
    text = "".join(segment.text for segment in minimind.template.render(messages))
    assert text == minimind_theirs.apply_chat_template(turns(messages), tokenize=False)
    assert minimind.encode_conversation(messages)[0] == minimind_theirs.apply_chat_template(turns(messages), return_dict=False)
    theirs = minimind_theirs.apply_chat_template(turns(messages[:-1]), add_generation_prompt=True, return_dict=False)
    assert minimind.encode_prompt(messages[:-1]) == theirs


@given(messages=conversations(ORDINARY))
def test_the_real_minimind_template_trains_the_answers_only(minimind: Tokenizer, messages: list[Message]) -> None:
    assert supervised(minimind, messages) == answers(messages, "<|im_end|>")
    prompt = minimind.encode_prompt(messages[:-1])
    assert minimind.encode_conversation(messages)[0][: len(prompt)] == prompt


def test_the_real_minimind_tokenizer_survives_saving(minimind: Tokenizer, tmp_path: Path) -> None:
    minimind.save(tmp_path)
    again = load_tokenizer(tmp_path)
    messages = [Message("user", "你好"), Message("assistant", "早上好")]
    assert again.encode_conversation(messages) == minimind.encode_conversation(messages)
    assert again.fingerprint() == minimind.fingerprint()
    assert again.stop_ids == minimind.stop_ids == {0, 2}  # ends of a text and of a turn
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.apply_chat_template(turns(messages), return_dict=False) == again.encode_conversation(messages)[0]


PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n\n\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n\n\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{%- if m.role == 'assistant' %}:{%- generation -%}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}:{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
)


@pytest.mark.parametrize("jinja", [PLAIN, MARKED])
@given(messages=conversations(ORDINARY))
def test_any_template_trains_the_answers_and_keeps_prompts_as_prefixes(
    chatml: Tokenizer, tmp_path_factory: pytest.TempPathFactory, jinja: str, messages: list[Message]
) -> None:
    tokenizer = with_template(chatml, tmp_path_factory.getbasetemp(), jinja)
    assert supervised(tokenizer, messages) == answers(messages, "<|im_end|>")
    tokens, _ = tokenizer.encode_conversation(messages)
    segments = tokenizer.template.render(messages)
    for i, message in enumerate(messages):
        own = "".join(segment.text for segment in segments if segment.turn == i)
        assert own == (message.content + "<|im_end|>" if message.role == "assistant" else "")
        if message.role == "assistant":
            prompt = tokenizer.encode_prompt(messages[:i])
            assert tokens[: len(prompt)] == prompt


@pytest.mark.parametrize("jinja", [PLAIN.replace("\n\n\n", ": "), MARKED.replace("-", "").replace("\n", "").replace(":", ": ")])
def test_earlier_answers_in_a_prompt_are_tokenized_separately_as_in_training(
    chatml: Tokenizer, tmp_path: Path, jinja: str
) -> None:
    """` the` is one token; behind a generation prompt that ends in a space it must stay two, in history too."""
    assert len(chatml.encode(" the")) < len(chatml.encode(" ")) + len(chatml.encode("the"))
    tokenizer = with_template(chatml, tmp_path, jinja)
    messages = [Message(role, "the fox") for role in ("user", "assistant") * 2]
    tokens, _ = tokenizer.encode_conversation(messages)
    prompt = tokenizer.encode_prompt(messages[:3])
    assert tokens[: len(prompt)] == prompt
    assert supervised(tokenizer, messages) == answers(messages, "<|im_end|>")


def test_the_fingerprint_changes_with_the_text_of_the_template(chatml: Tokenizer, tmp_path: Path) -> None:
    assert with_template(chatml, tmp_path, PLAIN).fingerprint() != with_template(chatml, tmp_path, MARKED).fingerprint()


@given(messages=conversations(ORDINARY))
def test_generation_marks_do_not_change_the_rendered_text(
    chatml: Tokenizer, tmp_path_factory: pytest.TempPathFactory, messages: list[Message]
) -> None:
    assume(messages[0].role != "system")
    folder = tmp_path_factory.getbasetemp()
    tokenizer = with_template(chatml, folder, MARKED)
    theirs = AutoTokenizer.from_pretrained(folder)
    text = "".join(segment.text for segment in tokenizer.template.render(messages))
    assert text == theirs.apply_chat_template(turns(messages), tokenize=False)


def test_a_template_that_leaves_out_an_answer_is_rejected_for_training(chatml: Tokenizer, tmp_path: Path) -> None:
    jinja = (
        "{% for m in messages %}<|im_start|>{{ m.role }}:"
        "{% if m.role == 'assistant' and not loop.last %}…{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
    )
    tokenizer = with_template(chatml, tmp_path, jinja)
    one = [Message("user", "a"), Message("assistant", "long thoughts")]
    assert supervised(tokenizer, one) == "long thoughts<|im_end|>"
    two = [*one, Message("user", "b"), Message("assistant", "c")]
    with pytest.raises(TemplateError, match="leaves out or changes the text of turn 2: 'long thoughts'"):
        tokenizer.encode_conversation(two)
    assert "…" in tokenizer.decode(tokenizer.encode_prompt(two[:-1]))  # it may still be talked to


@pytest.mark.parametrize(
    "jinja",
    [
        PLAIN.replace("<|im_end|>", "."),
        MARKED.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>"),
    ],
)
def test_a_template_whose_answers_have_no_end_token_is_rejected(chatml: Tokenizer, tmp_path: Path, jinja: str) -> None:
    tokenizer = with_template(chatml, tmp_path, jinja)
    with pytest.raises(TemplateError, match=r"no control token that ends turn 2|without a special token"):
        tokenizer.encode_conversation([Message("user", "a"), Message("assistant", "b")])


def test_errors_inside_a_jinja_template_become_template_errors(chatml: Tokenizer, tmp_path: Path) -> None:
    tokenizer = with_template(chatml, tmp_path, "{{ raise_exception('no such talk') }}")
    with pytest.raises(TemplateError, match="no such talk"):
        tokenizer.encode_conversation([Message("user", "a"), Message("assistant", "b")])
    tokenizer = with_template(chatml, tmp_path, "{{ messages[0].content + 3 }}")
    with pytest.raises(TemplateError, match="refuses"):
        tokenizer.encode_conversation([Message("user", "a"), Message("assistant", "b")])


def test_a_jinja_template_receives_the_token_names_of_its_tokenizer(chatml: Tokenizer, tmp_path: Path) -> None:
    """No bos_token, or the same token as bos and eos, must not shift one name to another token."""
    jinja = (
        "{{ bos_token if bos_token is defined else '-' }}{% if tools is not none %}tools{% endif %}"
        "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    )
    messages = [Message("user", "a"), Message("assistant", "b")]
    for config in ({}, {"bos_token": "<|im_end|>"}, {"bos_token": "<|endoftext|>"}):
        ours = with_template(chatml, tmp_path, jinja, **config)
        theirs = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(turns(messages), tokenize=False)
        if not config:
            assert theirs == "-a<|im_end|>b<|im_end|>"
        assert "".join(segment.text for segment in ours.template.render(messages)) == theirs


def test_generation_stops_at_the_token_with_which_the_template_ends_a_turn(chatml: Tokenizer, tmp_path: Path) -> None:
    """As in Qwen's base models: eos_token ends a document, the template ends turns with another token."""
    tokenizer = with_template(chatml, tmp_path, PLAIN, eos_token="<|endoftext|>")
    assert tokenizer.decode([tokenizer.eot_id]) == "<|im_end|>"
    assert tokenizer.decode([tokenizer.eos_id]) == "<|endoftext|>"
    assert tokenizer.stop_ids == {tokenizer.eot_id, tokenizer.eos_id}
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert (again.eot_id, again.eos_id) == (tokenizer.eot_id, tokenizer.eos_id)

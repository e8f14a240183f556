"""The chat template of encoder–decoders: a source, the decoder's start token, one answer."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from fledge.errors import FledgeError
from fledge.tokenizer import Message, TemplateError, Tokenizer, load_tokenizer, train_tokenizer
from fledge.tokenizer.message import ToolCall
from tests.conftest import TEXTS
from tests.support.encoder_decoders import write_config

U1, A1, U2, A2 = Message("user", "one?"), Message("assistant", "1."), Message("user", "two?"), Message("assistant", "2.")
TOKENIZER = train_tokenizer(TEXTS, 400, "seq2seq")


def t5_like(folder: Path) -> Path:
    """A tokenizer as T5 has it, saved by transformers: pieces that begin with ▁, an end token behind each text."""
    core = Core(models.Unigram())
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("\n", " ")])
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    special = ["[PAD]", "[EOS]", "[UNK]"]
    core.train_from_iterator(TEXTS, trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="[UNK]"))
    core.post_processor = processors.TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    core.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "eos_token": "[EOS]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@given(question=st.text(max_size=30), answer=st.text(min_size=1, max_size=30))
def test_a_question_is_the_source_as_it_is(question: str, answer: str) -> None:
    if any("\ud800" <= letter <= "\udfff" for letter in question + answer):
        return
    tokens, weights = TOKENIZER.encode_conversation([Message("user", question), Message("assistant", answer)])
    source = TOKENIZER.encode(question)
    start, end = TOKENIZER.decoder_start, TOKENIZER.eos_id
    assert tokens == [*source, end, start, *TOKENIZER.encode(answer), end]
    assert weights == [0.0] * (len(source) + 2) + [1.0] * (len(tokens) - len(source) - 2)
    assert tokens.count(start) == 1  # whatever the texts say
    assert TOKENIZER.encode_prompt([Message("user", question)]) == tokens[: len(source) + 2]


def test_earlier_turns_are_lines_of_the_source() -> None:
    system = Message("system", "be short")
    tokens, weights = TOKENIZER.encode_conversation([system, U1, A1, U2, A2])
    assert TOKENIZER.decode(tokens) == "be short\none?\n1.\ntwo?</s><pad>2.</s>"
    assert sum(weights) == len(TOKENIZER.encode("2.")) + 1


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([U1], "needs an answer as the last turn"),
        ([U1, A1, U2], "needs an answer as the last turn"),
        ([U1, Message("assistant", "", (ToolCall("add", "{}"),))], "does not support tool calls in turn 2"),
        ([U1, Message("tool", "7"), A1], "does not support role 'tool' in turn 2"),
    ],
)
def test_what_the_template_has_no_place_for_is_refused(messages: list[Message], problem: str) -> None:
    with pytest.raises(TemplateError, match=problem):
        TOKENIZER.template.render(messages)
    with pytest.raises(TemplateError, match="tools"):
        TOKENIZER.template.render([U1, A1], '[{"name": "add"}]')


def test_transformers_reads_what_is_saved(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("one?").input_ids == [*TOKENIZER.encode("one?"), TOKENIZER.eos_id]
    turns = [{"role": message.role, "content": message.content} for message in (U1, A1, U2, A2)]
    assert theirs.apply_chat_template(turns, tokenize=False) == TOKENIZER.decode(
        TOKENIZER.encode_conversation([U1, A1, U2, A2])[0]
    )
    prompt = theirs.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == TOKENIZER.decode(TOKENIZER.encode_prompt([U1]))
    again = load_tokenizer(tmp_path)
    assert again.fingerprint() == TOKENIZER.fingerprint() and again.decoder_start == TOKENIZER.decoder_start
    assert again.encode_conversation([U1, A1]) == TOKENIZER.encode_conversation([U1, A1])


def test_a_tokenizer_beside_an_encoder_decoder_gets_the_template(tmp_path: Path) -> None:
    folder = t5_like(tmp_path / "model")
    write_config(folder, decoder_start_token_id=0)
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    question, answer = "What is 12 plus 30?", "It is 42, said the fox."
    tokens, _ = ours.encode_conversation([Message("user", question), Message("assistant", answer)])
    assert tokens == [*theirs(question).input_ids, 0, *theirs(answer).input_ids]
    assert ours.template.specials == ("[EOS]", "[PAD]") and ours.added == () and ours.stop_ids == {1}
    assert ours.encode_prefix(question) == [*theirs(question).input_ids, 0]
    (folder / "config.json").unlink()
    alone = load_tokenizer(folder, "seq2seq")
    assert alone.encode_conversation([U1, A1]) == ours.encode_conversation([U1, A1])


def test_a_tokenizer_without_padding_token_is_refused(tmp_path: Path) -> None:
    folder = t5_like(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": None}))
    with pytest.raises(FledgeError, match="needs the pad_token"):
        load_tokenizer(folder, "seq2seq")


def test_other_templates_have_no_start_token(chatml: Tokenizer) -> None:
    assert chatml.decoder_start is None

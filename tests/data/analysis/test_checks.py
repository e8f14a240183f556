"""Data that would make training meaningless is found, with its source and its row; good data passes every check."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Core
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import WhitespaceSplit

from fledge.data.analysis.check_context import CheckContext
from fledge.data.analysis.checks import CHECKS, findings
from fledge.data.analysis.stage_statistics import stage_statistics
from fledge.findings import Finding
from fledge.tokenizer import Tokenizer, load_tokenizer
from tests.support.sources import UNCLEANED, jsonl, prepare, row

TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def check_data(kind: str, train: Any, tokenizer: Tokenizer, limits: dict[str, Any] | None = None, **data: Any) -> list[Finding]:
    """All findings of the checks in a stage."""
    dataset = prepare(kind, train, tokenizer, **data)
    context = CheckContext(dataset, stage_statistics(dataset), tokenizer, **(limits or {}))
    return [finding for group in findings(context).values() for finding in group]


def finding_of(check: str, stage_findings: list[Finding]) -> Finding:
    """The one finding of a check."""
    [finding] = [finding for finding in stage_findings if finding.check == check]
    return finding


def rows(count: int, answer: str = "The answer to it is {}, my friend.") -> list[dict[str, str]]:
    """Rows of different questions, each with an answer of its own."""
    return [row(f"What is {n}?", answer.format(n * 7)) for n in range(count)]


def with_template(tokenizer: Tokenizer, folder: Path, jinja: str) -> Tokenizer:
    """A tokenizer with a Jinja template of its own."""
    tokenizer.save(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    del config["fledge"]["template"]
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": jinja}), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(jinja, encoding="utf-8")
    return load_tokenizer(folder)


def test_good_data_passes_every_check(tmp_path: Path, chatml: Tokenizer) -> None:
    assert not check_data("sft", jsonl(tmp_path / "a.jsonl", rows(30)), chatml, validation=0.2)
    documents = [{"text": f"This is document number {n}, and it says something."} for n in range(9)]
    assert not check_data("pretrain", jsonl(tmp_path / "b.jsonl", documents), chatml)
    pairs = [{"prompt": f"{n}?", "chosen": f"yes, it is {n}", "rejected": f"no, it is not {n}"} for n in range(9)]
    assert not check_data("preference", jsonl(tmp_path / "c.jsonl", pairs), chatml)


def test_every_check_has_a_name_of_its_own() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)


def test_more_dropped_rows_than_allowed_are_an_error(tmp_path: Path, chatml: Tokenizer) -> None:
    file = jsonl(tmp_path / "a.jsonl", [*rows(8), row("x", ""), row("y", "")])
    finding = finding_of("dropped", check_data("sft", file, chatml, {"max_drop_fraction": 0.1}))
    assert finding.severity == "error" and "2 of 10 rows (20.0%)" in finding.message and finding.where == f"{file}:9"
    assert not check_data("sft", file, chatml, {"max_drop_fraction": 0.2})
    assert finding_of("dropped", check_data("sft", file, chatml)).severity == "warning"


def test_a_source_whose_rows_all_went_to_validation_is_an_error(tmp_path: Path, chatml: Tokenizer) -> None:
    files = [str(jsonl(tmp_path / f"{n}.jsonl", [row(f"q {n}", f"a long enough answer {n}")])) for n in range(8)]
    errors = [one for one in check_data("sft", files, chatml, validation=0.5) if one.check == "supervision"]
    assert errors and all("all its rows went to validation" in one.message for one in errors) and len(errors) < 8


def test_answers_without_a_supervised_end_token_are_an_error(tmp_path: Path, chatml: Tokenizer) -> None:
    file = jsonl(tmp_path / "a.jsonl", [row(f"{n}", f"{n} word" * 100) for n in range(3)])
    results = check_data("sft", file, chatml, max_seq_len=32)
    assert finding_of("end token", results).severity == "error" and finding_of("end token", results).where == f"{file}:1"
    assert (
        finding_of("cut answers", results).severity == "warning"
        and "3 of 3 rows (100.0%)" in finding_of("cut answers", results).message
    )


def test_doubled_start_tokens_are_an_error(tmp_path: Path, chatml: Tokenizer) -> None:
    jinja = "{{ bos_token }}{{ bos_token }}{% for m in messages %}" + TURN + "{% endfor %}" + PROMPT
    doubled = with_template(chatml, tmp_path / "doubled", jinja)
    file = jsonl(tmp_path / "a.jsonl", rows(4))
    finding = finding_of("start token", check_data("sft", file, doubled))
    assert finding.severity == "error" and "4 sequences begin with <|endoftext|> twice" in finding.message
    assert finding.where == f"{file}:1" and finding.evidence["source"] == "a.jsonl"
    once = with_template(chatml, tmp_path / "once", jinja.replace("{{ bos_token }}", "", 1))
    assert not check_data("sft", file, once)


def test_a_template_that_leaves_out_earlier_answers_is_an_error(tmp_path: Path, chatml: Tokenizer) -> None:
    forgetful = "{% for m in messages %}{% if loop.last or m['role'] == 'user' %}" + TURN + "{% endif %}{% endfor %}" + PROMPT
    tokenizer = with_template(chatml, tmp_path / "t", forgetful)
    turns = [{"role": role, "content": f"turn {n}"} for n, role in enumerate(("user", "assistant") * 2)]
    file = jsonl(tmp_path / "a.jsonl", [*rows(3), {"messages": turns}])
    finding = finding_of("template", check_data("sft", file, tokenizer))
    assert finding.severity == "error" and finding.where == f"{file}:4"
    assert "leaves out or changes the text of turn 2" in finding.message
    assert "generation" in finding.hint


def test_rows_that_a_usable_template_rejects_are_a_warning(tmp_path: Path, inst: Tokenizer) -> None:
    tools = json.dumps([{"name": "clock", "parameters": {}}])
    file = jsonl(tmp_path / "a.jsonl", [*rows(3), {**row("time?", "It is late now."), "tools": tools}])
    finding = finding_of("template", check_data("sft", file, inst))
    assert finding.severity == "warning" and "does not support tools" in finding.message and finding.where == f"{file}:4"


def test_rows_in_training_and_validation_are_an_error(tmp_path: Path, chatml: Tokenizer) -> None:
    train, held_out = jsonl(tmp_path / "a.jsonl", rows(6)), jsonl(tmp_path / "v.jsonl", rows(6)[4:])
    finding = finding_of("validation", check_data("sft", train, chatml, validation=str(held_out)))
    assert finding.severity == "error" and finding.message.startswith("2 rows") and finding.where == f"{train}:5"
    clean = {**UNCLEANED, "decontaminate": True}
    left_out = check_data("sft", train, chatml, validation=str(held_out), clean=clean)
    assert "validation" not in {finding.check for finding in left_out}


def test_tokens_outside_the_model_s_vocabulary_are_an_error(tmp_path: Path, chatml: Tokenizer) -> None:
    file = jsonl(tmp_path / "a.jsonl", rows(4))
    assert (
        "the model knows 100 tokens" in finding_of("vocabulary", check_data("sft", file, chatml, {"vocab_size": 100})).message
    )
    assert not check_data("sft", file, chatml, {"vocab_size": chatml.vocab_size})


def test_many_unknown_tokens_are_an_error(tmp_path: Path) -> None:
    core = Core(WordLevel({"<unk>": 0, "a": 1, "b": 2, "</s>": 3}, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    core.add_special_tokens(["</s>", "<unk>"])
    core.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    known = jsonl(tmp_path / "known.jsonl", [{"text": "a b b a"}, {"text": "b b b"}])
    unknown = jsonl(tmp_path / "unknown.jsonl", [{"text": "a b a b"}, {"text": "a b 春"}])
    finding = finding_of("unknown tokens", check_data("pretrain", [str(known), str(unknown)], tokenizer))
    assert finding.evidence["source"] == "unknown.jsonl" and finding.where == f"{unknown}:2"
    assert "1 of 9 tokens (11.1%)" in finding.message


def test_equal_answers_are_an_error(tmp_path: Path, chatml: Tokenizer) -> None:
    file = jsonl(tmp_path / "a.jsonl", rows(30, "I do not know that."))
    finding = finding_of("equal answers", check_data("sft", file, chatml))
    assert (
        finding.severity == "error" and "100.0% of 30 answers are the same" in finding.message and finding.where == f"{file}:1"
    )
    assert not check_data("sft", jsonl(tmp_path / "b.jsonl", rows(19, "I do not know that.")), chatml)


def test_answers_that_only_begin_alike_are_not_equal_answers(tmp_path: Path, chatml: Tokenizer) -> None:
    assert not check_data("sft", jsonl(tmp_path / "a.jsonl", rows(30, "The answer to this question is {}.")), chatml)


@pytest.mark.parametrize("left_out", [True, False])
def test_many_duplicates_are_a_warning(tmp_path: Path, chatml: Tokenizer, left_out: bool) -> None:
    file = jsonl(tmp_path / "a.jsonl", [*rows(20), rows(20)[3]])
    finding = finding_of("duplicates", check_data("sft", file, chatml, clean={**UNCLEANED, "exact_duplicates": left_out}))
    assert finding.severity == "warning" and "1 of 21 rows (4.8%)" in finding.message
    assert (f"{file}:21 (of {file}:4)" == finding.where) == left_out


def test_unfilled_placeholders_are_a_warning(tmp_path: Path, chatml: Tokenizer) -> None:
    file = jsonl(tmp_path / "a.jsonl", [*rows(3), row("Who are you?", "I am {{name}}, glad to be here.")])
    finding = finding_of("placeholders", check_data("sft", file, chatml))
    assert finding.severity == "warning" and "{{name}}" in finding.message and finding.where == f"{file}:4"


def test_keys_of_turns_that_nothing_reads_are_found(tmp_path: Path, chatml: Tokenizer) -> None:
    turns = [{"role": "user", "content": "q", "learn": 1}, {"role": "assistant", "content": "a", "loss": True}]
    file = jsonl(tmp_path / "a.jsonl", [{"messages": turns, "id": 1}, {"messages": turns[:1], "response": "b"}])
    finding = finding_of("unread keys", check_data("sft", file, chatml))
    assert finding.severity == "warning"
    assert finding.message == "key 'learn' of turns is not read, in 2 of 2 rows (100.0%) (turn 1: learn: 1)"
    assert finding.where == f"{file}:1"


def test_a_source_that_outweighs_the_others_is_a_warning(tmp_path: Path, chatml: Tokenizer) -> None:
    large = jsonl(tmp_path / "large.jsonl", rows(40, "{} is the answer to it, my friend."))
    small = jsonl(tmp_path / "small.jsonl", rows(3, "It is {}, to be sure."))
    results = finding_of("mixture", check_data("sft", [str(large), str(small)], chatml))
    assert results.evidence["source"] == "large.jsonl" and "of an epoch's tokens" in results.message
    assert not check_data("sft", [{"path": str(large)}, {"path": str(small), "repeat": 5}], chatml)
    often = finding_of("mixture", check_data("sft", [{"path": str(large)}, {"path": str(small), "repeat": 11}], chatml))
    assert often.evidence["source"] == "small.jsonl" and "11.0 times" in often.message


def test_a_source_of_few_openings_that_gives_half_of_the_tokens_is_a_warning(tmp_path: Path, chatml: Tokenizer) -> None:
    alike = jsonl(tmp_path / "alike.jsonl", rows(40, "As I said before, it is {}."))
    varied = jsonl(tmp_path / "varied.jsonl", [row(f"{n}?", f"{n} or {n + 1} may well be right here") for n in range(25)])
    finding = finding_of("mixture", check_data("sft", [str(alike), str(varied)], chatml))
    assert finding.evidence["source"] == "alike.jsonl" and "begin in few ways (1)" in finding.message


def test_a_finding_that_a_recipe_change_solves_carries_this_change(tmp_path: Path, chatml: Tokenizer) -> None:
    long = jsonl(tmp_path / "long.jsonl", [row(f"{n}", f"{n} word" * 100) for n in range(3)])
    for limits, patch in (
        ({}, {"stages.x.data.max_seq_len": 64}),
        ({"max_positions": 48}, {"stages.x.data.max_seq_len": 48}),
        ({"max_positions": 32}, None),
    ):
        results = check_data("sft", long, chatml, limits, max_seq_len=32)
        assert finding_of("cut answers", results).patch == finding_of("end token", results).patch == patch
    twice = jsonl(tmp_path / "twice.jsonl", [*rows(20), rows(20)[3]])
    clean = {**UNCLEANED, "exact_duplicates": False}
    duplicates = finding_of("duplicates", check_data("sft", twice, chatml, clean=clean))
    assert duplicates.patch == {"stages.x.data.clean.exact_duplicates": True}
    assert duplicates.overrides() == "--stages.x.data.clean.exact_duplicates true"
    settled = check_data("sft", twice, chatml, clean={**clean, "exact_duplicates": True})
    assert finding_of("duplicates", settled).patch is None and finding_of("duplicates", settled).overrides() == ""


def test_many_answers_about_identity_are_a_warning(tmp_path: Path, chatml: Tokenizer) -> None:
    plain = jsonl(tmp_path / "plain.jsonl", rows(8))
    identity = jsonl(tmp_path / "me.jsonl", [row(f"Who are you {n}?", f"I am an AI assistant {n}.") for n in range(8)])
    finding = finding_of("identity", check_data("sft", [str(plain), str(identity)], chatml))
    assert (
        finding.severity == "warning"
        and "50% of an epoch's answers" in finding.message
        and finding.evidence["source"] == "me.jsonl"
    )
    few = check_data("sft", [{"path": str(plain), "repeat": 10}, {"path": str(identity), "max_rows": 1}], chatml)
    assert "identity" not in {finding.check for finding in few}


def test_answers_of_one_or_two_tokens_are_a_warning(tmp_path: Path, chatml: Tokenizer) -> None:
    finding = finding_of(
        "short answers", check_data("sft", jsonl(tmp_path / "a.jsonl", [row(f"{n}?", f"{n}") for n in range(9)]), chatml)
    )
    assert finding.severity == "warning" and finding.message.startswith("100% of the answers have fewer than 3 tokens")


def test_control_tokens_in_texts_are_a_warning_with_the_option_that_parses_them(tmp_path: Path, chatml: Tokenizer) -> None:
    file = jsonl(tmp_path / "a.jsonl", ({"text": f"<|im_start|>document number {n}<|im_end|>"} for n in range(9)))
    finding = finding_of("control tokens", check_data("pretrain", file, chatml))
    assert finding.severity == "warning" and finding.where == f"{file}:1" and "9 of 9 rows" in finding.message
    assert finding.patch == {"stages.x.data.parse_special_tokens": True}
    assert not check_data("pretrain", file, chatml, parse_special_tokens=True)


def test_rendered_conversations_as_documents_get_a_hint_of_their_own(tmp_path: Path, chatml: Tokenizer) -> None:
    texts = (f"<|im_start|>user\nquestion {n}<|im_end|>\n<|im_start|>assistant\nanswer {n}<|im_end|>" for n in range(9))
    file = jsonl(tmp_path / "a.jsonl", ({"text": text} for text in texts))
    assert "give their turns as messages" in finding_of("control tokens", check_data("pretrain", file, chatml)).hint


def test_few_rows_with_control_tokens_of_other_tokenizers_are_no_finding(tmp_path: Path, chatml: Tokenizer) -> None:
    plain = [{"text": f"This is document number {n}, and it says something."} for n in range(200)]
    file = jsonl(tmp_path / "a.jsonl", [*plain, {"text": "<s>struck</s> out"}])
    assert not check_data("pretrain", file, chatml)
    finding = finding_of("control tokens", check_data("pretrain", jsonl(file, [*plain[:50], {"text": "<s>a b c</s>"}]), chatml))
    assert "tokenizer.special_tokens" in finding.hint


def test_a_tokenizer_that_changes_texts_is_a_warning(tmp_path: Path, chatml: Tokenizer) -> None:
    core = Core.from_str(chatml.core.to_str())
    core.normalizer = Lowercase()
    tokenizer = Tokenizer(core, chatml.template, bos=chatml.bos, eos=chatml.eos, pad=chatml.pad_text)
    finding = finding_of("round trip", check_data("sft", jsonl(tmp_path / "a.jsonl", rows(30)), tokenizer))
    assert "the fox" in finding.message

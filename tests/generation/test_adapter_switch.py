"""Several adapters on one base model: each computes what it computes alone, and the base stays as it is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import fledge
from fledge.chat import chat
from fledge.cli import main
from fledge.errors import FledgeError
from fledge.generation import SamplingParams, find_adapters
from fledge.model.loading import load_model, load_switch
from tests.support import small_model
from tests.support.adapters import logits, write_adapted
from tests.support.decoders import make_decoder
from tests.test_chat import type_lines

KINDS: dict[str, dict[str, Any]] = {
    "wide": {"r": 6, "lora_alpha": 30},
    "dora": {"r": 2, "use_dora": True, "target_modules": ["q_proj", "down_proj"]},
    "whole": {"r": 3, "use_rslora": True, "target_modules": ["v_proj"], "modules_to_save": ["embed_tokens", "norm"]},
    "none": {"r": 1, "rank_pattern": {"up_proj": 4}},
}
PARAMS = SamplingParams(max_new_tokens=6)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model.write_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [write_adapted(folder / name, base, seed, **settings) for seed, (name, settings) in enumerate(KINDS.items())]


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("implementation", ["native", "transformers"])
def test_each_adapter_computes_what_it_computes_alone_and_the_base_keeps_its_bits(
    tmp_path: Path, implementation: str, tie: bool
) -> None:
    if implementation == "transformers":
        pytest.importorskip("transformers")
    folder = tmp_path / "base"
    make_decoder(tie_word_embeddings=tie).save_pretrained(folder, bos=1, eos=[2], pad=0)
    paths = {name: write_adapted(tmp_path / name, folder, seed, **KINDS[name]) for seed, name in enumerate(KINDS)}
    switch = load_switch(folder, paths, implementation)
    alone = {name: logits(load_model(path, implementation)) for name, path in paths.items()}
    plain, bits = logits(load_model(folder, implementation)), load_model(folder, implementation).state_dict()
    switch.model.eval()
    for name in ("wide", None, "whole", "dora", "whole", "none", None, "wide"):
        switch.use(name)
        assert switch.active == name
        assert torch.equal(logits(switch.model), plain if name is None else alone[name])
        assert (logits(switch.model) - plain).abs().max() > (-1 if name is None else 0.05)
    switch.use(None)
    kept = switch.model.state_dict()
    assert kept.keys() == bits.keys() and all(torch.equal(kept[name], value) for name, value in bits.items())
    assert switch.model.adapter is None


def test_a_model_in_python_answers_with_the_chosen_adapter(base: Path, adapters: list[Path]) -> None:
    alone = {path.name: fledge.load(path).chat("What is a cat?", max_new_tokens=6) for path in adapters}
    plain = fledge.load(base)
    model = fledge.load(base, adapters=adapters[:3])
    assert model.adapters == ("wide", "dora", "whole") and model.adapter == "wide"
    for name in ("wide", "whole", "dora"):
        model.set_adapter(name)
        assert model.chat("What is a cat?", max_new_tokens=6) == alone[name]
        (score,) = {model.score("A cat").logprob}
        assert (
            score == fledge.load(base, adapters={"x": adapters[("wide", "dora", "whole").index(name)]}).score("A cat").logprob
        )
    model.set_adapter(None)
    assert model.adapter is None and model.score("A cat").logprob == plain.score("A cat").logprob
    with pytest.raises(FledgeError, match="no adapter is called 'wdie'") as raised:
        model.set_adapter("wdie")
    assert "did you mean wide" in str(raised.value.hint) and model.adapter is None
    own = fledge.load(adapters[0], adapters={"other": adapters[1]})  # an adapter is its base with itself
    assert own.adapters == ("other", "wide") and own.chat("What is a cat?", max_new_tokens=6) == alone[adapters[1].name]
    model.set_adapter("none")
    assert model.adapter is None


def test_a_conversation_goes_on_with_another_adapter(
    base: Path, adapters: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers: dict[str, str] = {}
    for name, path in {"wide": adapters[0], "dora": adapters[1], "base": base}.items():
        type_lines(monkeypatch, "What is a cat?")
        chat(str(path), PARAMS)
        answers[name] = capsys.readouterr().out.strip("\n")
    assert len(set(answers.values())) == 3
    question = "What is a cat?"
    lines = [question, "/adapter", "/new", "/adapter dora", question, "/adapter nothing", "/new", question]
    type_lines(monkeypatch, *lines, "/new", "/adapter none", question, "/adapters", "/quit")
    chat(str(base), PARAMS, adapters=[str(path) for path in adapters[:2]])
    output = capsys.readouterr()
    assert output.out == "".join(answers[name] + "\n" for name in ("wide", "dora", "dora", "base"))
    assert "with the adapter wide\n" in output.err and "adapters: wide (in use), dora, none" in output.err
    assert "no adapter is called 'nothing'" in output.err and "'/adapters' is no command" in output.err


def test_the_commands_take_adapters(
    base: Path, adapters: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for words in ([str(adapters[1])], [str(base), "--adapter", str(adapters[1])], [str(base)]):
        assert main(["generate", words[0], "What is a cat?", *words[1:], "--max-new-tokens", "6"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    file = tmp_path / "questions.jsonl"
    turns = [{"role": "user", "content": "What is a cat?"}, {"role": "assistant", "content": "x"}]
    file.write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    words = ["score", str(file), str(base), "--max-new-tokens", "6", "--json"]
    chosen = [word for path in ("none", *adapters[:2]) for word in ("--adapter", str(path))]
    assert main([*words, *chosen, "--errors", str(tmp_path / "wrong.jsonl")]) == 0
    scores = json.loads(capsys.readouterr().out)["models"]
    names = [f"{base} with {name}" for name in ("no adapter", "wide", "dora")]
    assert list(scores) == names and scores[names[2]]["exact_match_difference"]["to"] == names[0]
    given = [json.loads(line)["given"] for line in (tmp_path / "wrong.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(set(given)) == 3
    assert main(["score", str(file), str(base), str(adapters[0]), "--adapter", str(adapters[1])]) == 2
    assert "adapters belong to one model" in capsys.readouterr().err


def test_names_tell_adapters_apart(adapters: list[Path], tmp_path: Path) -> None:
    for folder in ("a/sft", "b/sft", "b/none"):
        shutil.copytree(adapters[0], tmp_path / folder)
    assert list(find_adapters([tmp_path / "a/sft", tmp_path / "b/sft", tmp_path / "b/none"])) == ["a/sft", "b/sft", "b/none"]


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "rank": ({"r": 5}, r"is \[6, 48\], expected \[5, 48\]", "gives this layer rank 5"),
    "unknown module": ({"target_modules": ["q_porj"]}, "target_modules: no module of the model is called 'q_porj'", "q_proj"),
    "unknown whole": ({"modules_to_save": ["embeddings"]}, "modules_to_save: no module .* 'embeddings'", "embed_tokens"),
    "surplus tensors": ({"target_modules": ["q_proj"]}, "does not fit the model: unknown", ""),
    "missing tensors": ({"modules_to_save": ["norm"]}, "does not fit the model: missing", ""),
    "kind": ({"peft_type": "IA3"}, "an adapter of the kind IA3", ""),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_adapters_are_one_error_that_names_the_file(
    name: str, base: Path, adapters: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values, message, hint = WRONG[name]
    folder = shutil.copytree(adapters[0], tmp_path / "wrong")
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    with pytest.raises(FledgeError, match=message) as raised:
        fledge.load(base, adapters=[folder])
    assert str(folder) in str(raised.value.where) and hint in str(raised.value.hint)
    assert main(["generate", str(base), "Hello", "--adapter", str(folder)]) == 2
    assert len(capsys.readouterr().err.splitlines()) <= 2


def test_adapters_of_other_models_and_things_that_are_no_adapter_are_refused(
    base: Path, adapters: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = small_model.write_model(tmp_path / "other")
    make_decoder(seed=4, vocab=load_model(other).vocab_size).save_pretrained(other, bos=None, eos=[0], pad=0)
    (foreign := shutil.copytree(adapters[0], tmp_path / "foreign")).joinpath("fledge_base.json").unlink()  # as PEFT writes it
    (empty := shutil.copytree(adapters[0], tmp_path / "empty")).joinpath("adapter_model.safetensors").unlink()
    for model, adapter, message in (
        (other, adapters[0], f"trained on other weights than those in {other}"),
        (other, foreign, f"trained on other weights than those in {other}"),
        (base, base, "this is a whole model and no adapter"),
        (base, tmp_path / "nothing", "there is no such run or model"),
        (base, empty, "the weights are missing"),
    ):
        assert main(["generate", str(model), "Hello", "--adapter", str(adapter)]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(FledgeError, match="an adapter is named twice"):
        fledge.load(base, adapters=[adapters[0], adapters[0]])

"""`fledge eval`: sets of the command line, results in files and as JSON, differences of models, errors."""

import json
import weakref
from pathlib import Path
from typing import Any

import pytest

from fledge.cli import main
from fledge.errors import FledgeError
from fledge.eval import folder_names, named_sets
from fledge.evaluate.records import read_set_result
from tests.support.small_model import write_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two models of one tokenizer with other weights."""
    folder = tmp_path_factory.mktemp("models")
    return str(write_model(folder / "one")), str(write_model(folder / "two", seed=1))


def write(file: Path, rows: list[Any]) -> str:
    """A file of rows."""
    file.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


PAIRS = [{"sentence_good": f"A cat is {n} animals.", "sentence_bad": f"A {n} cat animals is.", "UID": n % 2} for n in range(12)]


def test_two_models_are_compared_item_by_item_and_their_results_are_files(
    models: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = write(tmp_path / "texts.jsonl", [{"text": f"Dog {n} is an animal."} for n in range(8)])
    pairs = write(tmp_path / "pairs.jsonl", [*PAIRS, "broken\n"])
    words = ["eval", *models, "--set", texts, "--set", f"minimal_pairs={pairs}", "--out", str(tmp_path / "out")]
    assert main([*words, "--json"]) == 0
    output = capsys.readouterr()
    printed = json.loads(output.out)["sets"]
    assert "left out: 1 × " in output.err and list(printed) == ["texts", "pairs"]
    for name, found in printed.items():
        for model, folder in zip(models, ("one", "two"), strict=True):
            result = read_set_result(tmp_path / "out" / folder / f"{name}.json")
            assert {key: value.value for key, value in result.metrics.items()} == {
                key: value["value"] for key, value in found["models"][model]["metrics"].items()
            }
            assert result.fingerprint == found["fingerprint"] and len(result.items) == found["items"]
    losses = [
        [item.values["loss"] for item in read_set_result(tmp_path / "out" / one / "texts.json").items] for one in ("one", "two")
    ]
    difference = printed["texts"]["differences"][models[1]]["metrics"]["loss"]
    assert difference["difference"] == pytest.approx(sum(losses[1]) / 8 - sum(losses[0]) / 8)
    assert printed["pairs"]["differences"][models[1]]["metrics"]["accuracy"]["count"] == 12
    assert main([*words, "--max-samples", "4"]) == 0
    table = capsys.readouterr().out
    assert "pairs: 4 items of kind minimal_pairs" in table and "accuracy by group" in table
    assert f"{models[1]}, compared with {models[0]}" in table and "too few to decide" in table and "note: " in table


def test_sets_of_a_yaml_file_have_all_settings(tmp_path: Path) -> None:
    file = tmp_path / "sets.yaml"
    file.write_text("sums: {kind: generation, path: a.jsonl, few_shot: 2, extract: x}\nbase: {kind: text, path: b.txt}\n")
    assert [(one.name, one.config.kind, one.config.few_shot) for one in named_sets([str(file)])] == [
        ("sums", "generation", 2),
        ("base", "text", 0),
    ]
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("- {prompt: hello, expect: {ends: true}}\n")
    pairs = write(tmp_path / "prompts.jsonl", PAIRS)
    found = named_sets([str(prompts), pairs, f"text={tmp_path}/*.txt", "lm_eval=piqa"])
    assert [(one.name, one.config.kind) for one in found] == [
        ("prompts", "prompts"),
        ("prompts-2", "minimal_pairs"),
        (tmp_path.name, "text"),
        ("piqa", "lm_eval"),
    ]


def test_names_of_sets_differ_whatever_the_files_are_called(tmp_path: Path) -> None:
    files = [tmp_path / "x" / "a.jsonl", tmp_path / "y" / "a.jsonl", tmp_path / "a-2.jsonl"]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        write(file, PAIRS)
    assert [one.name for one in named_sets([*map(str, files), str(files[0])])] == ["a", "a-3", "a-2", "a-4"]


def test_a_model_is_gone_when_the_next_one_is_loaded(
    models: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fledge.eval

    load, living = fledge.eval.load_model_and_tokenizer, []

    def watched(*arguments: Any) -> Any:
        assert all(model() is None for model in living)
        found = load(*arguments)
        living.append(weakref.ref(found[0]))
        return found

    monkeypatch.setattr(fledge.eval, "load_model_and_tokenizer", watched)
    sums = write(tmp_path / "a.jsonl", [{"question": "A cat?", "answer": "x"}])
    assert main(["eval", *models, "--set", f"generation={sums}"]) == 0
    assert len(living) == 2


def test_items_are_checked_with_every_model_before_one_is_asked(
    models: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = str(write_model(tmp_path / "small", positions=20))
    texts = write(tmp_path / "texts.jsonl", [{"text": "A dog."}])
    sums = write(tmp_path / "sums.jsonl", [{"question": "A cat is an animal. " * 4, "answer": "x"}])
    words = ["eval", models[0], small, "--set", texts, "--set", f"generation={sums}", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "leaves no room" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sums: {kind: text, path: b.txt, stop: [x]}\n", "does not read it"),
        ("sums: {kind: text, paht: b.txt}\n", "paht: Extra inputs"),
        ("a b: {kind: text, path: b.txt}\n", "a name has letters"),
        ("sums: 3\n", "neither evaluation sets nor prompts"),
        ("{}\n", "neither evaluation sets nor prompts"),
    ],
)
def test_a_yaml_file_that_describes_no_sets_is_an_error(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "sets.yaml").write_text(content)
    with pytest.raises(FledgeError, match=message) as caught:
        named_sets([str(tmp_path / "sets.yaml")])
    assert "sets.yaml" in str(caught.value.where)


def test_what_cannot_be_asked_is_an_error(models: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write(tmp_path / "a.jsonl", [{"x": 1}])
    long = write(tmp_path / "long.jsonl", [{"question": "word " * 200, "answer": "x"}])
    for words, message in (
        ([models[0], "--set", rows], "no kind of evaluation set"),
        ([models[0], "--set", f"minimal_pairs={rows}"], "no row can be used"),
        ([models[0], "--set", f"generation={long}"], "leaves no room"),
        ([models[0], "--set", str(tmp_path / "none.jsonl")], "there is no file"),
        ([models[0], models[0], "--set", rows], "named twice"),
        ([str(tmp_path / "nothing"), "--set", f"text={long}"], "no row can be used"),
        ([models[0], "--set", rows, "--max-samples", "0"], "1 or more"),
    ):
        assert main(["eval", *words]) == 2
        assert message in capsys.readouterr().err


def test_results_of_models_with_one_name_go_to_folders_of_their_own() -> None:
    assert folder_names(["runs/a/sft", "runs/b/sft"]) == ["a-sft", "b-sft"]
    assert folder_names(["one", "/two"]) == ["one", "two"]

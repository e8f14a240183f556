"""The figures of a run's stages, from its folder, and of files that another trainer has read."""

import json
from pathlib import Path

import pytest

from fledge.doctor.data_figures import data_figures, data_figures_of_files
from fledge.errors import FledgeError
from fledge.pipeline import Pipeline
from fledge.recipe import Recipe, load_recipe
from fledge.run import Console, RunDirectory
from fledge.tokenizer import Tokenizer
from tests.doctor.data_figures.support import dialogues, values
from tests.doctor.data_figures.test_conversations import HEALTHY
from tests.doctor.data_figures.test_pairs_and_templates import pairs
from tests.support import tiny_run
from tests.support.documents import documents
from tests.support.sources import jsonl


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, Recipe]:
    """A run of a few updates with conversations and pairs."""
    folder = tmp_path_factory.mktemp("run")
    tree = tiny_run.tree(folder / "world", folder)
    stages = {name: {**tree["stages"][name], "duration": "2 steps"} for name in ("sft", "dpo")}
    written = tiny_run.write(folder / "recipe.yaml", {**tree, "stages": stages})
    root = Pipeline(load_recipe([str(written)]), Console(quiet=True)).run()
    return RunDirectory(root), load_recipe([str(root / "recipe.yaml")])


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_the_stages_of_a_run(run: tuple[RunDirectory, Recipe], name: str) -> None:
    directory, recipe = run
    before = {path: path.stat().st_mtime_ns for path in directory.root.rglob("*")}
    found = data_figures(directory.stage(name), recipe)
    assert {path: path.stat().st_mtime_ns for path in directory.root.rglob("*")} == before
    measured = values(found)
    assert {key: measured[key] for key in HEALTHY} == HEALTHY
    assert measured["template_differs"] == measured["built_differs"] == measured["duplicate_share"] == 0.0
    assert measured["validation_overlap"] == 0.0 and measured["vocab_size"] == 400
    report = json.loads(directory.stage(name).data_report.read_text())
    assert measured["examples"] == report["train"]["examples"]
    assert found["data/target_share"].value == pytest.approx(report["train"]["target_tokens"] / report["train"]["tokens"])


def test_a_run_whose_exported_template_was_changed(run: tuple[RunDirectory, Recipe]) -> None:
    directory, recipe = run
    model = directory.stage("sft").newest_model()
    assert model is not None
    file = model / "chat_template.jinja"
    text = file.read_text(encoding="utf-8")
    assert text.count("<|im_start|>assistant\n' }}{% endif %}") == 1
    file.write_text(text.replace("assistant\n' }}{% endif %}", "assistant' }}{% endif %}"), encoding="utf-8")
    try:
        figure = data_figures(directory.stage("sft"), recipe)["data/template_differs"]
    finally:
        file.write_text(text, encoding="utf-8")
    assert figure.value == 1.0


def test_data_that_are_not_there(run: tuple[RunDirectory, Recipe]) -> None:
    with pytest.raises(FledgeError, match="not a directory of built data"):
        data_figures(run[0].stage("elsewhere"), run[1])


# -- files --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(chatml: Tokenizer, tmp_path: Path) -> Path:
    """The folder of a tokenizer."""
    chatml.save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_files_of_conversations(folder: Path, tmp_path: Path) -> None:
    rows = dialogues(80)
    file = jsonl(tmp_path / "rows.jsonl", [*rows, *rows[:20]])
    found = values(data_figures_of_files([file], folder, None, 128))
    assert found["examples"] == 100 and found["duplicate_share"] == pytest.approx(0.2) and found["ends_present"] == 1.0
    assert not {"prompt_supervised_share", "ends_supervised", "batch_shift", "order_z", "template_differs"} & set(found)


def test_files_of_pairs_and_of_texts(folder: Path, tmp_path: Path) -> None:
    found = values(data_figures_of_files([jsonl(tmp_path / "pairs.jsonl", pairs())], folder, "preference", 128))
    assert found["chosen_longer"] == pytest.approx(0.75)
    found = values(data_figures_of_files([jsonl(tmp_path / "texts.jsonl", documents(60))], folder, None, 64))
    assert found["duplicate_share"] == pytest.approx(3 / 63) and found["unigram_entropy"] > found["bigram_entropy"] > 0


def test_files_that_are_cut_where_the_other_trainer_cuts(folder: Path, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", dialogues(80))
    shares = [values(data_figures_of_files([file], folder, "sft", most))["truncated_share"] for most in (256, 40)]
    assert shares[0] == 0.0 and shares[1] > 0.2


def test_files_of_several_kinds_and_unknown_kinds(folder: Path, tmp_path: Path) -> None:
    files = [jsonl(tmp_path / "a.jsonl", dialogues(20)), jsonl(tmp_path / "b.jsonl", documents(20))]
    with pytest.raises(FledgeError, match="several kinds"):
        data_figures_of_files(files, folder, None, 64)
    with pytest.raises(FledgeError, match="no kind of stage"):
        data_figures_of_files(files, folder, "poems", 64)

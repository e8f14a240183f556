"""Files and folders that are named in the wrong place are called what they are, with what to do."""

import os
from pathlib import Path

import pytest

from fledge.data.reading.records import files_of
from fledge.errors import FledgeError
from fledge.model.hf_config import read_config_json
from fledge.model.loading import load_model
from fledge.recipe.schema import Source
from fledge.run.directory import resolve_model_path
from fledge.run.file_kinds import BY_EXTENSION, BY_SIGNATURE
from fledge.run.text_files import read_json
from tests.support.decoders import make_decoder


def data_error(path: str) -> str:
    """The error for a path of data."""
    with pytest.raises(FledgeError) as caught:
        files_of(Source(path=path), "stages.sft.data.train")
    return str(caught.value)


def model_error(path: Path, read: object = resolve_model_path) -> str:
    """The error for a path of a model."""
    with pytest.raises(FledgeError) as caught:
        read(path)  # type: ignore[operator]
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "is_what", "way"),
    [
        ("a.xlsx", "a spreadsheet", "save it as CSV"),
        ("A.XLSX", "a spreadsheet", "save it as CSV"),
        ("a.tar.gz", "an archive", "extract it"),
        ("a.zip", "an archive", "extract it"),
        ("a.pdf", "a PDF document", ".txt"),
        ("a.png", "a picture", "text"),
        ("model.safetensors", "the weights of a model", "init_from or model.path"),
        ("rows.pkl", "an object of Python", "JSON lines"),
        ("chat.db", "a database", "export"),
        ("readme.md", "a text file", ".txt"),
        ("recipe.yaml", "a configuration", "rows"),
    ],
)
def test_a_file_that_holds_no_rows_is_called_what_it_is(tmp_path: Path, name: str, is_what: str, way: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    text = data_error(str(tmp_path / name))
    assert is_what in text and way in text


@pytest.mark.parametrize("signature", BY_SIGNATURE)
def test_a_binary_file_with_the_name_of_a_text_is_called_what_it_is(tmp_path: Path, signature: bytes) -> None:
    from fledge.data.reading.encodings import utf8_blocks

    file = tmp_path / "rows.txt"
    file.write_bytes(signature + bytes(range(32)))
    kind = BY_SIGNATURE[signature]
    with pytest.raises(FledgeError) as caught:
        list(utf8_blocks(file, "utf-8"))
    assert kind.description in str(caught.value) and kind.way in str(caught.value)


def test_a_path_that_leads_nowhere_is_answered_with_what_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("{}")
    for written in ("data\\train.jsonl", "“data/train.jsonl”", "【data/train.jsonl】", "data/trian.jsonl", "ｄata/train.jsonl"):
        assert "did you mean 'data/train.jsonl'?" in data_error(written), written
    assert "{hub: tatsu-lab/alpaca}" in data_error("tatsu-lab/alpaca")
    assert "download the file" in data_error("https://example.org/c.jsonl")
    assert f"looked in {tmp_path}" in data_error("none/of/these-*.jsonl")


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("a run", ("recipe.yaml", "environment.json")),
        ("a stage of a run", ("plan.json", "events.jsonl")),
        ("a checkpoint", ("model/config.json", "manifest.json")),
        ("a model", ("config.json", "model-00001-of-00002.safetensors")),
        ("a LoRA adapter", ("adapter_config.json", "adapter_model.safetensors")),
    ],
)
def test_a_folder_of_a_run_or_a_model_is_no_source_of_rows(tmp_path: Path, kind: str, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert f"is the folder of {kind}: it holds no rows" in data_error(str(tmp_path))


def test_a_folder_of_rows_with_a_configuration_beside_them_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    (tmp_path / "rows.jsonl").write_text("{}")
    assert len(files_of(Source(path=str(tmp_path)), "train")) == 2


def test_a_file_where_a_model_is_wanted_is_answered_with_the_way_on(tmp_path: Path) -> None:
    for name, way in (
        ("m.pt", "pickled weights can run code"),
        ("m.h5", "also has config.json"),
        ("chat.jsonl", "config.json and model.safetensors"),
    ):
        (tmp_path / name).write_bytes(b"x")
        assert way in model_error(tmp_path / name) and way in model_error(tmp_path / name, read_config_json)
    (tmp_path / "config.json").write_text("{}")
    assert "weights_only=True" in model_error(tmp_path / "m.pt")
    (tmp_path / "model.safetensors").touch()
    assert f"name its folder: {tmp_path}" in model_error(tmp_path / "m.pt")


def test_a_run_names_its_model_and_an_adapter_stands_for_one(tmp_path: Path) -> None:
    adapter, run = tmp_path / "ad", tmp_path / "run"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    assert resolve_model_path(str(adapter)) == adapter
    model = run / "sft" / "checkpoints" / "last" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (run / "recipe.yaml").write_text("")
    assert f"write {model}" in model_error(run, read_config_json)


def test_every_ending_is_written_as_it_is_compared() -> None:
    assert all(ending.startswith(".") and ending == ending.lower() for ending in BY_EXTENSION)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "generation_config.json"])
def test_a_pipe_in_a_model_directory_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    make_decoder().save_pretrained(tmp_path, bos=1, eos=[2], pad=0)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(FledgeError, match="not a regular file"):
        load_model(tmp_path)


def test_a_pipe_among_the_files_of_a_run_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "result.json")
    with pytest.raises(FledgeError, match="not a regular file"):
        read_json(tmp_path / "result.json")

"""Models of the hub, downloaded from a server on this machine: of one commit, only what is needed, and the cache offline."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import fledge
from fledge.errors import FledgeError
from fledge.model.hub import HubModel, hub_copy, parse_hub_name
from fledge.model.loading import load_model
from fledge.model.locate import locate_model
from tests.export.exporting import write_model
from tests.support.hub_server import Hub, Repository, serve

SHARD = "model-00001-of-00001.safetensors"
UNREACHABLE = "http://127.0.0.1:9"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one model, `Owner/Model`, and an empty cache."""
    with serve() as hub:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.delenv("HF_HUB_CACHE", raising=False)
        hub.repositories["Owner/Model"] = Repository()
        hub.repositories["Owner/Model"].add(
            write_model(tmp_path / "model", qk_norm=True),
            **{"pytorch_model.bin": b"x" * 99, "consolidated.safetensors": b"y" * 99, "README.md": b"---\nlicense: mit\n---\n",
               "onnx.bin": b"z"},
        )  # fmt: skip
        yield hub


def test_a_model_is_downloaded_once_with_its_sizes_told_and_used_without_the_network(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    folder = locate_model("hub:Owner/Model", lines.append)
    commit = hub.repositories["Owner/Model"].revisions["main"]
    assert folder.name == commit and len(lines) == 1
    assert "downloading" in lines[0] and commit[:12] in lines[0] and "MB" in lines[0]
    assert sorted(hub.fetched) == sorted(path.name for path in folder.iterdir())
    assert {"model.safetensors", "README.md"} < set(hub.fetched)
    assert not {"pytorch_model.bin", "consolidated.safetensors"} & set(hub.fetched)
    assert torch.equal(load_model(folder).lm_head_weight, load_model(tmp_path / "model").lm_head_weight)

    fetched = len(hub.fetched)
    assert locate_model("hub:Owner/Model", lines.append) == folder and len(hub.fetched) == fetched and len(lines) == 1
    monkeypatch.setenv("HF_ENDPOINT", UNREACHABLE)
    assert locate_model("hub:Owner/Model", lines.append) == folder
    assert "cannot be reached; the local copy of commit" in lines[1]
    requests = hub.requests
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    assert locate_model(f"hub:Owner/Model@{commit}", lines.append) == folder and hub.requests == requests


def test_branches_tags_and_commits_are_revisions(hub: Hub, tmp_path: Path) -> None:
    repository = hub.repositories["Owner/Model"]
    first = repository.revisions["main"]
    second = repository.add(write_model(tmp_path / "other", qk_norm=True, num_hidden_layers=1), "v2")
    assert hub_copy(HubModel("Owner/Model", "v2")).commit == second
    assert hub_copy(HubModel("Owner/Model", first)).folder.name == first
    assert hub_copy(HubModel("Owner/Model", "v2"), commit=first).commit == first


def test_an_interrupted_download_goes_on(hub: Hub) -> None:
    files = hub.repositories["Owner/Model"].commits[hub.repositories["Owner/Model"].revisions["main"]]
    weights = files.pop("model.safetensors")
    files[SHARD] = weights
    names = dict.fromkeys(json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")]), SHARD)
    names.pop("__metadata__")
    files["model.safetensors.index.json"] = json.dumps({"weight_map": names}).encode()
    held = files.pop("tokenizer.json")
    folder = locate_model("hub:Owner/Model")
    assert "tokenizer.json" not in hub.fetched and SHARD in hub.fetched
    files["tokenizer.json"] = held
    assert locate_model("hub:Owner/Model") == folder and hub.fetched.count(SHARD) == 1
    assert (folder / "tokenizer.json").exists()


@pytest.mark.parametrize(("name", "message"), [
    ("hub:Owner/Nothing", "the hub has no such model"), ("hub:Owner/Model@v9", "has no revision 'v9'"),
    ("hub:Owner", "is written hub:owner/name"), ("hub:", "is written hub:owner/name"),
    ("hub:../x/y", "is written hub:owner/name"), ("hub:Owner/Pickles", r"only pytorch_model\.bin, a pickle"),
    ("hub:Owner/Gguf", "GGUF files and no safetensors"), ("hub:Owner/Gated", "asks for permission"),
    ("hub:Owner/Empty", "no weights in safetensors"),
])  # fmt: skip
def test_what_cannot_be_had_is_said_and_nothing_is_downloaded(hub: Hub, tmp_path: Path, name: str, message: str) -> None:
    folder = tmp_path / "pickles"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    hub.repositories |= {"Owner/Pickles": Repository(), "Owner/Gguf": Repository(), "Owner/Empty": Repository()}
    hub.repositories["Owner/Empty"].add(folder)
    hub.repositories["Owner/Pickles"].add(folder, **{"pytorch_model.bin": b"x"})
    hub.repositories["Owner/Gguf"].add(folder, **{"m-Q8_0.gguf": b"x"})
    hub.repositories["Owner/Gated"] = Repository(gated=True)
    hub.repositories["Owner/Gated"].add(tmp_path / "model")
    with pytest.raises(FledgeError, match=message) as caught:
        locate_model(name)
    assert caught.value.where == name and not hub.fetched


def test_without_the_network_and_without_a_copy_it_says_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", UNREACHABLE)
    with pytest.raises(FledgeError, match=r"the hub cannot be reached .*no whole copy of this model"):
        locate_model("hub:Owner/Model")


def test_an_ordinary_name_never_asks_the_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FledgeError, match="looks like a name on the Hugging Face hub") as caught:
        locate_model("Owner/Model")
    assert "write hub:Owner/Model" in (caught.value.hint or "") and hub.requests == 0


def test_names_of_the_hub() -> None:
    assert parse_hub_name("hub:Qwen/Qwen2.5-3B-Instruct") == HubModel("Qwen/Qwen2.5-3B-Instruct")
    assert parse_hub_name("hub:a/b@refs/pr/1") == HubModel("a/b", "refs/pr/1")
    assert str(parse_hub_name("hub:a/b", "v1.0")) == "hub:a/b@v1.0"
    with pytest.raises(FledgeError, match="written twice"):
        parse_hub_name("hub:a/b@x", "y")


def test_a_run_keeps_the_commit_that_it_began_with(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "The fox."}] for n in range(12)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    stage = {"data": {"train": "chat.jsonl", "validation": 0, "max_seq_len": 64}, "duration": "2 steps",
             "batch": {"micro_batch_size": 2}}  # fmt: skip
    recipe = {"name": "mine", "model": {"path": "hub:Owner/Model", "revision": "main"}, "stages": {"sft": stage}}
    run = fledge.train(recipe)
    first = hub.repositories["Owner/Model"].revisions["main"]
    assert json.loads((Path(run.path) / "models.json").read_text()) == {"hub:Owner/Model@main": first}
    hub.repositories["Owner/Model"].add(write_model(tmp_path / "other", qk_norm=True, num_hidden_layers=1))
    two = {**stage, "init_from": "hub:Owner/Model@main"}
    fledge.train({**recipe, "stages": {"sft": stage, "sft2": {**two, "kind": "sft"}}})
    assert fledge.load(run.path).num_parameters == fledge.load(tmp_path / "model").num_parameters
    assert json.loads((Path(run.path) / "models.json").read_text()) == {"hub:Owner/Model@main": first}

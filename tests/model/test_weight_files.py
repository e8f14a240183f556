"""Weights that cannot be what their directory says are refused with the cause, by both implementations."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fledge.errors import FledgeError
from fledge.model.loading import load_model
from fledge.model.weights import write_tensors
from tests.support.decoders import make_decoder

WEIGHTS = "model.safetensors"
IMPLEMENTATIONS = ["native", "transformers"]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def _directory(folder: Path, **changes: object) -> dict[str, Tensor]:
    """A model directory; returns its tensors."""
    make_decoder(**changes).save_pretrained(folder, bos=1, eos=[2], pad=0)
    return load_file(folder / WEIGHTS)


def _write(folder: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_head_of_its_own_in_a_tied_model_is_refused_and_kept_when_the_configuration_says_so(
    tmp_path: Path, implementation: str
) -> None:
    tensors = _directory(tmp_path, tie_word_embeddings=True)
    head = tensors[EMBEDDING] + 1
    _write(tmp_path, {**tensors, HEAD: head})
    with pytest.raises(FledgeError, match=r"tie_word_embeddings: true, but lm_head\.weight is not the embedding") as caught:
        load_model(tmp_path, implementation)
    assert "set tie_word_embeddings to false" in (caught.value.hint or "")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    assert torch.equal(load_model(tmp_path, implementation).lm_head_weight, head)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_copy_of_the_embedding_as_the_head_of_a_tied_model_is_accepted(tmp_path: Path, implementation: str) -> None:
    tensors = _directory(tmp_path, tie_word_embeddings=True)
    _write(tmp_path, {**tensors, HEAD: tensors[EMBEDDING].clone()})
    assert torch.equal(load_model(tmp_path, implementation).lm_head_weight, tensors[EMBEDDING])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_with_the_tensor(tmp_path: Path, implementation: str, value: float) -> None:
    tensors = _directory(tmp_path)
    tensors["model.layers.1.mlp.up_proj.weight"][2, 3] = value
    _write(tmp_path, tensors)
    with pytest.raises(FledgeError, match=r"model\.layers\.1\.mlp\.up_proj\.weight has 1 values of 1,536 that are not finite"):
        load_model(tmp_path, implementation)
    load_model(tmp_path, implementation, finite=False)  # as a run loads its own checkpoint, whose guards decide


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.uint8, torch.bool])
def test_weights_of_integers_are_refused(tmp_path: Path, implementation: str, dtype: torch.dtype) -> None:
    tensors = _directory(tmp_path)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(dtype)
    _write(tmp_path, tensors)
    with pytest.raises(FledgeError, match=r"model\.norm\.weight has the type (u?int|bool)"):
        load_model(tmp_path, implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer"),
        (b"", "no safetensors file, or it is cut off"),
        (b"\xff" * 40, "no safetensors file"),
        (b"PK\x03\x04" + b"\0" * 60, "no safetensors file"),
    ],
)
def test_files_that_are_no_weights_are_named(tmp_path: Path, implementation: str, content: bytes, problem: str) -> None:
    _directory(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(FledgeError, match=problem):
        load_model(tmp_path, implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_truncated_file_is_named_with_both_sizes(tmp_path: Path, implementation: str) -> None:
    _directory(tmp_path)
    size = (tmp_path / WEIGHTS).stat().st_size
    os.truncate(tmp_path / WEIGHTS, size - 5)
    with pytest.raises(FledgeError, match=rf"truncated: the file has {size - 5:,} bytes, its header says {size:,}"):
        load_model(tmp_path, implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, implementation: str) -> None:
    _directory(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    (tmp_path / WEIGHTS).symlink_to(WEIGHTS)
    with pytest.raises(FledgeError, match="cannot be read: Too many levels of symbolic links"):
        load_model(tmp_path, implementation)


def test_pickled_weights_alone_are_named_with_a_way_to_convert_them(tmp_path: Path) -> None:
    tensors = _directory(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(FledgeError, match=r"only pytorch_model\.bin, a pickle") as caught:
        load_model(tmp_path, "native")
    assert "save_pretrained" in (caught.value.hint or "")


def test_rotary_frequencies_that_older_files_hold_are_left_out_and_other_tensors_are_refused(tmp_path: Path) -> None:
    tensors = _directory(tmp_path)
    _write(tmp_path, {**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    load_model(tmp_path, "native")
    _write(tmp_path, {**tensors, "model.layers.0.self_attn.q_proj.bias": torch.ones(32)})
    with pytest.raises(FledgeError, match=r"unknown \['model\.layers\.0\.self_attn\.q_proj\.bias'\]"):
        load_model(tmp_path, "native")


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_written_weights_have_the_mode_of_any_other_file(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_tensors({"w": torch.ones(3)}, tmp_path / "w.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "w.safetensors").stat().st_mode) == 0o666 & ~mask
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


# -- told from the headers ----------------------------------------------------------------------------------------------


def _sharded(folder: Path) -> dict[str, str]:
    """A model in two files with an index; returns the file of each tensor."""
    tensors = _directory(folder)
    (folder / WEIGHTS).unlink()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    places = {name: names[number % 2] for number, name in enumerate(tensors)}
    for file in names:
        save_file({name: tensor for name, tensor in tensors.items() if places[name] == file}, folder / file)
    _index(folder, places)
    return places


def _index(folder: Path, places: dict[str, str]) -> None:
    content = {"metadata": {"total_size": 123_456}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_an_index_that_does_not_tell_where_tensors_are_is_refused(tmp_path: Path, implementation: str) -> None:
    places = _sharded(tmp_path)
    load_model(tmp_path, implementation)
    first, second = sorted(set(places.values()))
    norm = "model.norm.weight"
    other = second if places[norm] == first else first
    for changed, message in (
        ({**places, "model.extra": first}, rf"the index has model\.extra in {first}, which does not have it"),
        ({**places, norm: other}, rf"the index has model\.norm\.weight in {other}, and it is in {places[norm]}"),
        ({name: file for name, file in places.items() if name != norm}, r"has model\.norm\.weight, which is not in the index"),
        ({**places, "a": first, "b": first}, r"and 1 more such tensors"),
    ):
        _index(tmp_path, changed)
        with pytest.raises(FledgeError, match=message) as caught:
            load_model(tmp_path, implementation)
        assert "files of different models are mixed" in (caught.value.hint or "")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_missing_and_truncated_shards_are_told_with_sizes(tmp_path: Path, implementation: str) -> None:
    first, second = sorted(set(_sharded(tmp_path).values()))
    size = (tmp_path / second).stat().st_size
    os.truncate(tmp_path / second, size - 1)
    with pytest.raises(FledgeError, match=rf"truncated: the file has {size - 1:,} bytes, its header says {size:,}"):
        load_model(tmp_path, implementation)
    (tmp_path / second).unlink()
    left = (tmp_path / first).stat().st_size
    with pytest.raises(FledgeError, match=rf"1 of the 2 files that the index names; found are {left:,} of 123,456 bytes"):
        load_model(tmp_path, implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_one_file_beside_others_of_an_index_is_refused(tmp_path: Path, implementation: str) -> None:
    _sharded(tmp_path)
    _write(tmp_path, {"model.norm.weight": torch.ones(32)})
    with pytest.raises(FledgeError, match="which of both is the model"):
        load_model(tmp_path, implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [33]}, r"model\.norm\.weight is \[33\] of F32, which is not the 128 bytes that it has"),
        ({"shape": [2**62, 2**62]}, "impossible sizes in the header"),
        ({"shape": [-32]}, "impossible sizes in the header"),
        ({"shape": None}, r"the header does not describe model\.norm\.weight"),
        ({"dtype": "BF16"}, "which is not the 128 bytes"),
        ({"dtype": []}, "the header does not describe"),
        ({"data_offsets": [5, 3]}, "impossible sizes"),
        ({"data_offsets": [0, 2**60]}, r"impossible sizes|truncated"),
        ({"data_offsets": [128]}, "the header does not describe"),
        ({"data_offsets": [4, 132]}, r"without gaps|the weights are damaged: the file has"),
    ],
)
def test_impossible_entries_of_a_header_are_named(
    tmp_path: Path, implementation: str, change: dict[str, object], message: str
) -> None:
    _directory(tmp_path)
    content = (tmp_path / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["model.norm.weight"].update(change)
    text = json.dumps(header).encode()
    (tmp_path / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    with pytest.raises(FledgeError, match=message):
        load_model(tmp_path, implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("change", [{"hidden_size": 2**20}, {"num_hidden_layers": 10**6}, {"vocab_size": 10**8}])
def test_a_configuration_of_a_giant_is_told_before_memory_is_asked_for(
    tmp_path: Path, implementation: str, change: dict[str, int]
) -> None:
    _directory(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(
        FledgeError, match=r"describes [\d,]+ parameters, more than the [\d,]+ bytes|is larger than any model has"
    ):
        load_model(tmp_path, implementation)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "x.pth", "y.ckpt"])
def test_pickles_of_any_name_are_told(tmp_path: Path, name: str) -> None:
    _directory(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(FledgeError, match=f"only {name}, a pickle") as caught:
        load_model(tmp_path, "native")
    assert "convert them" in (caught.value.hint or "")


def test_the_way_to_convert_a_pickle_converts_it(tmp_path: Path) -> None:
    tensors = _directory(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    torch.save(tensors, tmp_path / "weights.pth")
    with pytest.raises(FledgeError) as caught:
        load_model(tmp_path, "native")
    program = (caught.value.hint or "").partition('python -c "')[2].partition('"')[0]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
    assert torch.equal(load_model(tmp_path, "native").file_tensors()[EMBEDDING], tensors[EMBEDDING])


def test_a_folder_with_only_a_gguf_file_says_to_name_the_file(tmp_path: Path) -> None:
    _directory(tmp_path)
    (tmp_path / WEIGHTS).rename(tmp_path / "m.gguf")
    with pytest.raises(FledgeError, match=r"the folder has m\.gguf") as caught:
        load_model(tmp_path, "native")
    assert caught.value.hint == f"name the file: {tmp_path / 'm.gguf'}"

"""Building data: whoever works on the shards, however often it is interrupted, the bytes are the same."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.build_dataset import build as build_recipe
from fledge.data import StageDataset
from fledge.data.build import build, plan
from fledge.data.build.build import collect, encode
from fledge.data.build.directory import BuildDirectory, remove_build
from fledge.data.build.executors import (
    Done,
    Executor,
    InProcessExecutor,
    ProcessPoolExecutor,
    RayExecutor,
    SlurmExecutor,
)
from fledge.data.build.load import load_built_dataset
from fledge.errors import FledgeError
from fledge.recipe import PreferenceStage, PretrainStage, Recipe, SftStage, Source, recipe_from_dict
from fledge.run import exclusive_lock
from fledge.tokenizer import Tokenizer, train_tokenizer
from tests.support import sources
from tests.support.sources import jsonl

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "春眠",
    "不觉晓",
    "处处",
    "闻啼鸟",
    "rain",
    "falls",
    "and",
    "3",
    "+",
    "4",
    "=",
    "7",
]


def stage_of(kind: str, train: Any, **data: Any) -> PretrainStage | SftStage | PreferenceStage:
    """A stage that cleans as a recipe does that says nothing about it."""
    return sources.stage_of(kind, train, **{"clean": {}, **data})


def prepare(kind: str, train: Any, tokenizer: Tokenizer, **data: Any) -> StageDataset:
    """Its packed data."""
    return sources.prepare(kind, train, tokenizer, **{"clean": {}, **data})


def documents(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Documents of some twenty words, a few of them equal."""
    rng = np.random.default_rng(seed)
    rows = [{"text": " ".join(rng.choice(WORDS, 24))} for _ in range(count)]
    return [*rows, *rows[:3]]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One for all tests here."""
    return train_tokenizer((row["text"] for row in documents(50)), 320)


def tree(folder: Path) -> dict[str, bytes]:
    """All files of a build, with their bytes."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def built(folder: Path, file: Path, tokenizer: Tokenizer, executor: Executor, **data: object) -> dict[str, bytes]:
    """Build one stage and give its bytes."""
    stage = stage_of("pretrain", file, validation=0.1, **data)
    encode(collect(stage, "x", 1, folder, executor), tokenizer, executor)
    return tree(folder)


@pytest.fixture()
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards from little data."""
    monkeypatch.setattr(plan, "SHARD_BYTES", 6000)


@pytest.mark.usefixtures("small_shards")
def test_worker_processes_write_the_bytes_of_one_process(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = jsonl(tmp_path / "a.jsonl", [*documents(400), b"{broken", {"text": "short"}])
    near = {"clean": {"near_duplicates": 0.7}}
    here = built(tmp_path / "here", file, tokenizer, InProcessExecutor(), **near)
    assert sum(name.startswith("tokens/") and name.endswith("result.json") for name in here) > 3
    assert built(tmp_path / "two", file, tokenizer, ProcessPoolExecutor(2), **near) == here


class _Dying(InProcessExecutor):
    """Does some shards and dies in the middle of one."""

    def __init__(self, after: int) -> None:
        self.left = after

    def run(self, build: BuildDirectory, phase: str, numbers: Sequence[int], done: Done) -> None:
        for number in numbers:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            super().run(build, phase, [number], done)


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("after", [0, 1, 3, 5, 7, 9])
def test_an_interrupted_build_continues_to_the_bytes_of_an_uninterrupted_one(
    tmp_path: Path, tokenizer: Tokenizer, after: int
) -> None:
    file = jsonl(tmp_path / "a.jsonl", documents(300))
    whole = built(tmp_path / "whole", file, tokenizer, InProcessExecutor())
    with pytest.raises(KeyboardInterrupt):
        built(tmp_path / "cut", file, tokenizer, _Dying(after))
    assert built(tmp_path / "cut", file, tokenizer, InProcessExecutor()) == whole


BUILD = """
from pathlib import Path
from tests.data.build.test_build import stage_of
from fledge.data.build import plan
from fledge.data.build.build import collect
from fledge.data.build.executors import ProcessPoolExecutor
plan.SHARD_BYTES = 6000
collect(stage_of("pretrain", Path({file!r}), validation=0.1), "x", 1, Path({folder!r}), ProcessPoolExecutor(2))
"""


def _children(pid: int) -> list[int]:
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "all"])
def test_a_build_whose_worker_was_killed_continues_to_the_same_bytes(
    tmp_path: Path, tokenizer: Tokenizer, victim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, folder = jsonl(tmp_path / "a.jsonl", documents(3000)), tmp_path / "cut"
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD.format(file=str(file), folder=str(folder))],
        cwd=Path(__file__).parents[3], stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not list(folder.glob("rows/0*")) and process.poll() is None:
        time.sleep(0.02)
    children = _children(process.pid)
    os.kill(children[0] if victim == "worker" else process.pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert victim == "all" or "was killed by signal 9" in errors
    deadline = time.monotonic() + 20
    while any(_alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_alive(child) for child in children)
    monkeypatch.setattr(plan, "SHARD_BYTES", 6000)
    assert 0 < len(list(folder.glob("rows/0*"))) < len(collect(stage_of("pretrain", file), "x", 1).plan.shards)
    assert built(folder, file, tokenizer, ProcessPoolExecutor(2)) == built(
        tmp_path / "whole", file, tokenizer, InProcessExecutor()
    )


def _alive(pid: int) -> bool:
    import psutil

    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.slow
@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("kind", ["ray", "slurm"])
def test_clusters_write_the_bytes_of_one_process(tmp_path: Path, tokenizer: Tokenizer, kind: str) -> None:
    pytest.importorskip("ray" if kind == "ray" else "submitit")
    file = jsonl(tmp_path / "a.jsonl", documents(300))
    executor: Executor = RayExecutor(2) if kind == "ray" else SlurmExecutor(2, cluster="local")
    files = built(tmp_path / "cluster", file, tokenizer, executor)
    kept = {name: content for name, content in files.items() if not name.startswith("jobs/")}
    assert not any(name.endswith(".pkl") for name in files)
    assert kept == built(tmp_path / "here", file, tokenizer, InProcessExecutor())


def test_a_built_directory_gives_the_batches_of_a_temporary_build(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", documents(60))
    recipe = recipe_from_dict(
        {
            "tokenizer": {"vocab_size": 320},
            "stages": {"x": {"kind": "pretrain", "data": {"train": str(file), "max_seq_len": 64}}},
        }
    )
    dataset = build_recipe(recipe, tmp_path / "out", None, _quietly)["x"]
    again = build_recipe(recipe, tmp_path / "out", None, _quietly)["x"]
    from fledge.prepare import Preparation

    fly = Preparation(recipe, _quietly)
    fresh = fly.stage_data("x", fly.tokenizer())
    for data in (dataset, again):
        assert data.train.fingerprint() == fresh.train.fingerprint()
        assert data.as_dict() == fresh.as_dict()
        assert (data.train.batch(0, 4).input_ids == fresh.train.batch(0, 4).input_ids).all()


def test_a_built_directory_for_something_else_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = jsonl(tmp_path / "a.jsonl", documents(40))
    stage = stage_of("pretrain", file)
    encode(collect(stage, "x", 1, tmp_path / "b"), tokenizer)
    with pytest.raises(FledgeError, match=r"data.max_seq_len: built with 64, requested 32"):
        load_built_dataset(tmp_path / "b", stage_of("pretrain", file, max_seq_len=32), tokenizer, 1)
    with pytest.raises(FledgeError, match="seed: built with 1, requested 2"):
        load_built_dataset(tmp_path / "b", stage, tokenizer, 2)
    other = train_tokenizer(["other text"], 300)
    with pytest.raises(FledgeError, match="another tokenizer"):
        load_built_dataset(tmp_path / "b", stage, other, 1)
    tokens = next((tmp_path / "b").glob("tokens/*/train.tokens"))
    content = tokens.read_bytes()
    tokens.write_bytes(content[:-2])
    with pytest.raises(FledgeError, match="damaged: the size of this file"):
        load_built_dataset(tmp_path / "b", stage, tokenizer, 1)
    tokens.write_bytes(content)
    (tmp_path / "b" / "manifest.json").unlink()
    with pytest.raises(FledgeError, match="not complete"):
        load_built_dataset(tmp_path / "b", stage, tokenizer, 1)


def _recipe(file: Path, **more: Any) -> Recipe:
    data = {"train": str(file), "max_seq_len": 64, "validation": 0.1}
    return recipe_from_dict(
        {
            "tokenizer": {"vocab_size": 320},
            "stages": {"x": {"kind": "pretrain", "data": {**data, **more}, "duration": "2 steps"}},
        }
    )


def _quietly(line: str) -> None:
    pass


def test_a_complete_build_names_the_files_that_changed_since(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", documents(40))
    build_recipe(_recipe(file), tmp_path / "out", None, _quietly)
    jsonl(file, documents(41))
    with pytest.raises(FledgeError, match=r"built from other data:\n.*a\.jsonl: changed since"):
        build_recipe(_recipe(file), tmp_path / "out", None, _quietly)
    with pytest.raises(FledgeError, match=r"another recipe:\n.*stages\.x\.data\.max_seq_len"):
        build_recipe(_recipe(file, max_seq_len=32), tmp_path / "out", None, _quietly)


def test_a_complete_build_is_not_taken_for_a_stage_that_starts_from_another_model(tmp_path: Path) -> None:
    """The model that the first stage starts from brings the tokenizer."""
    recipe = _recipe(jsonl(tmp_path / "a.jsonl", documents(40)))
    build_recipe(recipe, tmp_path / "out", None, _quietly)
    stages = {"x": recipe.stages["x"].model_copy(update={"init_from": "base"})}
    with pytest.raises(FledgeError, match=r"another recipe:\n.*stages\.x\.init_from"):
        build_recipe(recipe.model_copy(update={"stages": stages}), tmp_path / "out", None, _quietly)


def test_a_recipe_can_be_corrected_after_a_failed_build(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", documents(40))
    with pytest.raises(FledgeError, match="there is no file"):
        build_recipe(_recipe(tmp_path / "b.jsonl"), tmp_path / "out", None, _quietly)
    with pytest.raises(FledgeError, match="are dropped"):
        build_recipe(_recipe(file, max_drop_fraction=0.01), tmp_path / "out", None, _quietly)
    assert build_recipe(_recipe(file), tmp_path / "out", None, _quietly)["x"].train.examples.count > 20


def test_a_build_continues_when_only_training_settings_change(tmp_path: Path) -> None:
    file, out = jsonl(tmp_path / "a.jsonl", documents(40)), tmp_path / "out"
    before = build_recipe(_recipe(file), out, None, _quietly)["x"].train.fingerprint()
    recipe = _recipe(file)
    longer = recipe.stages["x"].model_copy(update={"length": "9 steps"})
    after = build_recipe(recipe.model_copy(update={"stages": {"x": longer}}), out, None, _quietly)["x"].train.fingerprint()
    assert before == after


def test_only_one_process_writes_a_build(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", documents(40))
    with (
        exclusive_lock(tmp_path / ".out.lock", tmp_path / "out"),
        pytest.raises(FledgeError, match="another process is writing here"),
    ):
        build_recipe(_recipe(file), tmp_path / "out", None, _quietly)
    build_recipe(_recipe(file), tmp_path / "out", None, _quietly)


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file, folder = jsonl(tmp_path / "a.jsonl", documents(40)), tmp_path / "x" / "data"
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(FledgeError, match="this folder holds something else"):
        collect(stage_of("pretrain", file), "x", 1, folder)
    remove_build(folder)
    assert (folder / "mine.txt").read_text() == "mine"


def test_flipped_bits_in_built_tokens_are_an_error(tmp_path: Path, tokenizer: Tokenizer) -> None:
    stage = stage_of("pretrain", jsonl(tmp_path / "a.jsonl", documents(40)))
    encode(collect(stage, "x", 1, tmp_path / "b"), tokenizer)
    tokens = next((tmp_path / "b").glob("tokens/*/train.tokens"))
    content = bytearray(tokens.read_bytes())
    content[40] ^= 1
    tokens.write_bytes(bytes(content))
    with pytest.raises(FledgeError, match="not those that were written"):
        load_built_dataset(tmp_path / "b", stage, tokenizer, 1)


def test_an_interrupted_run_with_a_tokenizer_to_train_can_be_started_again(tmp_path: Path) -> None:
    from fledge.prepare import Preparation

    file = jsonl(tmp_path / "a.jsonl", documents(40))
    recipe = _recipe(file)
    recipe = recipe.model_copy(update={"stages": {**recipe.stages, "y": recipe.stages["x"]}})
    first = Preparation(recipe, _quietly, lambda name: tmp_path / name)
    fingerprint = first.stage_data("x", first.tokenizer()).train.fingerprint()  # here it ends; the tokenizer was not saved
    again = Preparation(recipe, _quietly, lambda name: tmp_path / name)
    assert again.stage_data("x", again.tokenizer()).train.fingerprint() == fingerprint


def test_a_tokenizer_is_trained_on_the_rows_of_all_stages_after_they_are_collected(tmp_path: Path) -> None:
    from fledge.prepare import Preparation

    one, two = (
        jsonl(tmp_path / "a.jsonl", documents(40)),
        jsonl(tmp_path / "b.jsonl", [{"text": "zebra quartz " * n} for n in range(9, 49)]),
    )
    recipe = _recipe(one)
    other = recipe.stages["x"].model_copy(
        update={"data": recipe.stages["x"].data.model_copy(update={"train": [Source(path=str(two))]})}
    )
    recipe = recipe.model_copy(update={"stages": {"x": recipe.stages["x"], "y": other}})
    lines: list[str] = []
    preparation = Preparation(recipe, lines.append)
    two.rename(tmp_path / "hidden.jsonl")
    assert preparation.load_tokenizer() is None  # no row is read for that
    with pytest.raises(FledgeError, match="there is no file"):
        preparation.tokenizer()
    assert lines == []  # nothing was trained before all rows were there
    (tmp_path / "hidden.jsonl").rename(two)
    tokenizer = preparation.tokenizer()
    assert lines[0].startswith("training a tokenizer")
    of_one_stage = preparation.train_tokenizer([preparation.collect_rows("x")])
    assert len(tokenizer.encode(" zebra quartz")) < len(of_one_stage.encode(" zebra quartz"))


def test_the_recipe_s_system_prompt_does_not_count_for_duplicates_and_languages(tmp_path: Path, tokenizer: Tokenizer) -> None:
    pytest.importorskip("rensa")
    rows = [{"prompt": f"{word} {word}?", "response": f"{word} it is, the {word}"} for word in WORDS[:6]]
    clean = {"near_duplicates": 0.8, "languages": ["zh"]}
    file = jsonl(
        tmp_path / "a.jsonl",
        [{"prompt": f"问题{row['prompt']}是什么意思呢", "response": "不知道" * n} for n, row in enumerate(rows, 1)],
    )
    account = prepare(
        "sft", file, tokenizer, max_seq_len=4000, system="You are a patient assistant. " * 30, clean=clean
    ).report.sources[0]
    assert account.used_rows == 6, account.dropped


def test_evaluation_rows_of_any_kind_and_language_are_kept_out_of_training(tmp_path: Path, tokenizer: Tokenizer) -> None:
    text = "春天来了花园里的花都开了小鸟在枝头唱歌孩子们在草地上奔跑老人们坐在长椅上晒太阳"
    english = "a long and plain english sentence that quotes nothing of it "
    file = jsonl(tmp_path / "a.jsonl", [{"text": f"{english * 4} {text} {english * 4}"}, {"text": english * 5}])
    questions = jsonl(tmp_path / "q.jsonl", [{"question": text}])
    clean = {"languages": ["en"], "decontaminate_against": str(questions)}
    account = prepare("pretrain", file, tokenizer, clean=clean).report.sources[0]
    assert dict(account.dropped) == {"contaminated by the evaluation set": 1}


def test_a_row_that_makes_several_examples_is_drawn_as_one(tmp_path: Path, tokenizer: Tokenizer) -> None:
    turns = [{"role": role, "content": f"{role} {n} says a few words"} for n in range(6) for role in ("user", "assistant")]
    rows = [{"messages": [{"role": "system", "content": f"row {n}"}, *turns]} for n in range(9)]
    source = {"path": str(jsonl(tmp_path / "a.jsonl", rows)), "max_rows": 4}
    data = prepare("sft", [source], tokenizer, max_seq_len=128, truncation="split")
    (taken,) = data.as_dict()["mixture"]
    assert taken["rows"] == 4 and taken["examples"] > 4
    whole = np.bincount(data.train.examples.row_numbers())
    assert taken["examples"] == 4 * whole[0]


def test_a_validation_source_may_only_limit_its_rows(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file, other = jsonl(tmp_path / "a.jsonl", documents(40)), jsonl(tmp_path / "b.jsonl", documents(40, seed=5))
    dataset = prepare("pretrain", file, tokenizer, validation=[{"path": str(other), "max_rows": 3}])
    assert dataset.report.sources[1].rows == 3
    with pytest.raises(FledgeError, match=r"validation\.0: token_fraction, ratio, max_tokens and repeat"):
        prepare("pretrain", file, tokenizer, validation=[{"path": str(other), "repeat": 3}])


def test_a_duplicate_is_dropped_with_both_locations(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = jsonl(tmp_path / "a.jsonl", documents(40))
    account = prepare("pretrain", file, tokenizer).report.sources[0]
    assert (account.rows, account.used_rows, dict(account.dropped)) == (43, 40, {"exact duplicate": 3})
    assert account.first_events["exact duplicate"][0]["where"].endswith("a.jsonl:41")
    assert account.first_events["exact duplicate"][0]["detail"].endswith("a.jsonl:1")
    kept = prepare("pretrain", file, tokenizer, clean={"exact_duplicates": False}).report.sources[0]
    assert kept.used_rows == 43


def test_training_rows_with_a_question_of_the_validation_file_are_dropped(tmp_path: Path, tokenizer: Tokenizer) -> None:
    question = "How many legs do three spiders and two birds have when they stand together on one long branch?"
    rows = [{"prompt": f"{question}", "response": f"answer {n}"} for n in range(2)]
    rows += [{"prompt": f"What is {n} and {n}?", "response": str(2 * n)} for n in range(20)]
    held_out = jsonl(tmp_path / "v.jsonl", [{"prompt": question, "response": "28"}])
    file = jsonl(tmp_path / "a.jsonl", rows)
    train, validation = prepare("sft", file, tokenizer, max_seq_len=256, validation=str(held_out)).report.sources
    assert dict(train.dropped) == {"contaminated by the evaluation set": 2}
    assert (validation.split, validation.used_rows, validation.validation_rows) == ("validation", 1, 1)


def test_more_dropped_than_allowed_stops_with_the_reasons(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = jsonl(tmp_path / "a.jsonl", [*documents(40), b"{broken"])
    with pytest.raises(FledgeError) as caught:
        prepare("pretrain", file, tokenizer, max_drop_fraction="1%")
    assert "4 of the 44 rows" in caught.value.text() and "3 exact duplicate, 1 invalid JSON" in caught.value.text()
    prepare("pretrain", file, tokenizer, max_drop_fraction="10%")


def test_an_error_in_a_worker_reaches_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "MIN_BYTES_FOR_WORKERS", 0)
    good, bad = jsonl(tmp_path / "a.jsonl", documents(10)), tmp_path / "b.json"
    bad.write_text('[{"text": "x"}, {')
    with pytest.raises(FledgeError, match=r"b\.json"):
        collect(stage_of("pretrain", [str(good), str(bad)]), "x", 1, tmp_path / "d")


row_values = st.one_of(
    st.fixed_dictionaries({"text": st.text(max_size=40)}),
    st.fixed_dictionaries({"text": st.sampled_from(["twice " * 12, "thrice " * 14])}),
    st.just(None), st.integers(), st.fixed_dictionaries({"other": st.text(max_size=3)}),
)  # fmt: skip


@given(st.lists(row_values, min_size=1, max_size=25), st.booleans(), st.sampled_from([0, 0.3]))
@settings(max_examples=40, deadline=None)
def test_totals_add_up_whatever_the_rows_are(
    tmp_path_factory: pytest.TempPathFactory, rows: list[object], exact: bool, share: float
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    file = folder / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": WORDS[0] + " is a document that stays " * 4}]))
    tokenizer = train_tokenizer(["a b c"], 300)
    try:
        data = prepare("pretrain", file, tokenizer, validation=share, clean={"exact_duplicates": exact})
    except FledgeError as error:
        assert "no training example is left" in error.text() or "none of" in error.text()
        return
    (account,) = data.report.sources
    assert account.rows == len(rows) + 1 == account.used_rows + account.dropped_rows
    held_out = data.validation.examples.count if data.validation else 0
    assert data.train.examples.count + held_out == account.used_rows
    assert account.validation_rows == held_out
    assert data.train.batch(0, len(data.train)).num_target_tokens == data.train.num_target_tokens

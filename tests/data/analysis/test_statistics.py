"""Statistics are what one would count by hand, and counting changes nothing."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.data import StageDataset, collect, encode
from fledge.data.analysis.check_context import CheckContext
from fledge.data.analysis.checks import findings
from fledge.data.analysis.lengths import PERCENTILES, Lengths
from fledge.data.analysis.pre_tokenization import Measured, measure, measure_near
from fledge.data.analysis.stage_statistics import stage_statistics
from fledge.data.analysis.statistics import SourceStatistics, StageStatistics
from fledge.tokenizer import Tokenizer
from tests.support.sources import jsonl, row, stage_of

SEED = 1


def statistics(
    kind: str, train: object, tokenizer: Tokenizer, **data: object
) -> tuple[StageStatistics, StageDataset, Measured]:
    """The statistics of a stage, its data, and the measurement of the collected rows."""
    stage = stage_of(kind, train, **data)
    collected = collect(stage, "x", SEED)
    measured = measure(collected, tokenizer, lambda _: None)
    dataset = encode(collected, tokenizer)
    return stage_statistics(dataset, measured), dataset, measured


def only(stage: StageStatistics) -> SourceStatistics:
    """The statistics of the only source of a stage."""
    [source] = stage.sources
    return source


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=60))
def test_percentiles_are_lengths_that_occur_and_the_histogram_counts_each_once(values: list[int]) -> None:
    lengths = Lengths.of(np.asarray(values))
    assert lengths is not None
    ordered = sorted(values)
    for p in PERCENTILES:
        assert lengths.percentiles[f"p{p}"] == ordered[max(0, math.ceil(p / 100 * len(values) - 1e-9) - 1)]
    assert lengths.percentiles["max"] == max(values)
    assert sum(count for *_, count in lengths.histogram) == lengths.count == len(values)
    for start, stop, count in lengths.histogram:
        assert count == sum(start <= value < stop for value in values)


def test_lengths_of_no_values_are_none() -> None:
    assert Lengths.of(np.zeros(0, np.int64)) is None


def test_rows_columns_languages_and_openings_are_counted(tmp_path: Path, chatml: Tokenizer) -> None:
    rows = [{"instruction": f"What is {n}?", "input": "", "output": f"The answer is {n}."} for n in range(6)]
    rows += [{"instruction": f"什么是{n}？", "input": None, "output": f"答案是{n}。"} for n in range(3)]
    rows += [{"instruction": "Hi", "output": "Hello"}, rows[0]]
    clean = {"exact_duplicates": True}
    stage, *_ = statistics("sft", jsonl(tmp_path / "a.jsonl", rows), chatml, clean=clean)
    source = only(stage)
    assert (source.rows, source.used_rows, source.exact_duplicates) == (11, 10, 1)
    assert source.dropped == {"exact duplicate": 1}
    assert source.schemas == {"alpaca": 11}
    assert source.columns["input"] == {"missing": 1, "null": 3, "empty": 7}
    assert source.columns["output"] == {"missing": 0, "null": 0, "empty": 0}
    assert source.languages["zh"] == 3 and sum(source.languages.values()) == 10
    assert source.answers is not None and source.answers.openings[0].text == "The answer is 0."
    assert source.answers.openings[0].count == 2 and source.answers.distinct_openings == 10


def test_duplicates_are_counted_when_they_are_kept(tmp_path: Path, chatml: Tokenizer) -> None:
    rows = [row("a b c", "d"), row("e f g", "h"), row("a b c", "d"), row("a b c", "d")]
    stage, data, _ = statistics("sft", jsonl(tmp_path / "a.jsonl", rows), chatml)
    assert only(stage).exact_duplicates == 2
    assert data.train.examples.count == 4


def test_near_duplicates_are_measured_and_stay_in(tmp_path: Path, chatml: Tokenizer) -> None:
    text = "the quick brown fox jumps over the lazy dog and then it sleeps in the green garden until evening comes " * 2
    rows = [
        {"text": text + "again"},
        {"text": "something else that has nothing to do with it"},
        {"text": text + "twice"},
    ]
    file = jsonl(tmp_path / "a.jsonl", rows)
    stage, data, measured = statistics("pretrain", file, chatml)
    source = only(stage)
    assert source.near_duplicates == 1 and data.train.examples.count == 3
    [(location, first_location, overlap)] = source.near_examples
    assert (location, first_location) == (f"{file}:3", f"{file}:1") and measured.threshold <= overlap < 1
    left_out, *_ = statistics("pretrain", file, chatml, clean={"near_duplicates": 0.8})
    assert only(left_out).near_duplicates == 1 == only(left_out).dropped["near duplicate"]


def test_a_higher_threshold_finds_no_more_near_duplicates(tmp_path: Path) -> None:
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen"]
    rows = [{"text": " ".join([*words[:n], "end", *words[n:]])} for n in range(len(words))]
    collected = collect(stage_of("pretrain", jsonl(tmp_path / "a.jsonl", rows)), "x", SEED)
    counts = [sum(near.count for near in measure_near(collected, threshold).values()) for threshold in (0.3, 0.6, 0.9)]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]


def test_lengths_count_whole_conversations_and_how_many_fit(tmp_path: Path, chatml: Tokenizer) -> None:
    rows = [row("hi", "x " * n) for n in (1, 5, 100, 200)]
    stage, data, _ = statistics("sft", jsonl(tmp_path / "a.jsonl", rows), chatml, max_seq_len=64)
    source = only(stage)
    assert source.tokens is not None and source.fit is not None and source.training is not None
    expected = [len(tokens) for tokens, _ in (data.train.examples.sequence(n) for n in range(2))]
    assert source.tokens.percentiles["p1"] == expected[0] and source.tokens.percentiles["p50"] == expected[1]
    assert source.tokens.percentiles["max"] > 200
    assert source.fit.share == 0.5 and source.fit.truncated_rows == 2 and source.fit.lost_tokens > 0
    assert source.training.ended_share == 0.5
    assert source.training.tokens == int(np.diff(data.train.examples.offsets).sum())
    assert source.training.target_tokens == data.train.num_target_tokens


def test_documents_are_never_cut(tmp_path: Path, chatml: Tokenizer) -> None:
    stage, *_ = statistics("pretrain", jsonl(tmp_path / "a.jsonl", [{"text": "word " * 300}, {"text": "short text"}]), chatml)
    source = only(stage)
    assert source.fit is not None and source.training is not None and source.answers is None
    assert source.fit.share == 0.5 and source.fit.lost_tokens == 0 and source.fit.split_rows >= 1
    assert source.training.ended_share is None and stage.epoch.identity_share is None


def test_an_epoch_s_steps_and_shares_are_counted(tmp_path: Path, chatml: Tokenizer) -> None:
    one = jsonl(tmp_path / "one.jsonl", [row(f"question {n}", "answer " * 20) for n in range(12)])
    two = jsonl(tmp_path / "two.jsonl", [row("Who are you?", f"I am an assistant, number {n}.") for n in range(4)])
    stage, data, _ = statistics("sft", [{"path": str(one)}, {"path": str(two), "repeat": 3}], chatml)
    epoch = stage.epoch
    assert epoch.examples == 24 and epoch.packed_rows == len(data.train) and epoch.steps == math.ceil(epoch.packed_rows / 16)
    assert epoch.padding_share == pytest.approx(1 - epoch.tokens / (epoch.packed_rows * epoch.packed_length))
    assert [entry.examples for entry in stage.mixture] == [12, 12] and stage.mixture[1].passes == 3
    assert sum(entry.token_share for entry in stage.mixture) == pytest.approx(1)
    assert epoch.identity_share == 0.5
    assert stage.sources[1].answers is not None and stage.sources[1].answers.identity == 4


def test_statistics_and_findings_do_not_depend_on_the_shards(
    tmp_path: Path, chatml: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(f"question {n % 17}", f"answer {n % 17} " * (1 + n % 40)) for n in range(60)]
    files = [str(jsonl(tmp_path / "a.jsonl", rows)), str(jsonl(tmp_path / "b.jsonl", [*rows[:9], row("x", "y")]))]
    settings = {"clean": {"exact_duplicates": True}, "validation": 0.1}
    one, data, _ = statistics("sft", files, chatml, **settings)
    monkeypatch.setattr("fledge.data.build.plan.SHARD_BYTES", 700)
    many, pieces, _ = statistics("sft", files, chatml, **settings)
    shards = [dataset.plan.shards for dataset in (data, pieces)]
    assert len(shards[0]) == 2 and len(shards[1]) > 8
    assert many == one
    both = [findings(CheckContext(dataset, counts, chatml)) for dataset, counts in ((data, one), (pieces, many))]
    assert both[0] == both[1] and any(both[0].values())


def test_measuring_does_not_change_the_training_data(tmp_path: Path, chatml: Tokenizer) -> None:
    stage = stage_of("sft", jsonl(tmp_path / "a.jsonl", [row(f"q {n}", f"a {n}") for n in range(9)]), validation=0.3)
    plain = encode(collect(stage, "x", SEED), chatml)
    _, data, _ = statistics("sft", str(tmp_path / "a.jsonl"), chatml, validation=0.3)
    assert data.train.fingerprint() == plain.train.fingerprint()
    assert data.as_dict() == plain.as_dict()


def test_real_alpaca_has_its_duplicates_and_its_empty_inputs(shared_data: Path, chatml: Tokenizer) -> None:
    folder = shared_data / "llamafactory"
    sources = [{"path": str(folder / f"{name}.json")} for name in ("alpaca_en_demo", "alpaca_zh_demo", "identity")]
    stage = stage_of("sft", sources, clean={})
    collected = collect(stage, "x", SEED)
    result = stage_statistics(encode(collected, chatml))
    assert [source.exact_duplicates for source in result.sources] == [14, 8, 0]
    assert result.sources[0].columns["input"]["empty"] == 587
    assert result.sources[2].noticed["unfilled placeholder"] == 85
    assert result.sources[2].answers is not None and result.sources[2].answers.identity_share > 0.5
    assert max(result.sources[1].languages, key=lambda name: result.sources[1].languages[name]) == "zh"

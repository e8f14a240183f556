"""A reward model as the rater: its rewards of each answer, what it cannot read, and another model's ratings."""

from pathlib import Path

import pytest

from fledge.cli import main
from fledge.generation import load_reward_model
from fledge.model.loading import load_model
from fledge.prefer import scored
from fledge.tokenizer import Message, load_tokenizer
from tests.support.preferences import asked, lines_of, write_answers
from tests.support.small_model import write_model

PROMPTS = [
    asked("What is a cat?", "An animal.", "A dog.", ""),
    asked("Dogs?", "dog " * 200, "Yes.", "No.", system="Be short."),
    asked("Cats? " * 100, "Yes.", "No."),
]


def write_reward_model(folder: Path, seed: int = 0) -> Path:
    """A small reward model with its tokenizer."""
    write_model(folder)
    tokenizer, model = load_tokenizer(folder), load_model(folder)
    model.become_reward_model(seed)
    model.save_pretrained(folder, bos=None, eos=sorted(tokenizer.stop_ids), pad=tokenizer.pad)
    return folder


def rank(folder: Path, model: Path, *words: str) -> int:
    """Rank three prompts; the exit code."""
    if not (folder / "a.jsonl").exists():
        write_answers(folder / "a.jsonl", *PROMPTS)
    by = ["--by", "reward-model", "--model", str(model), "--out", str(folder / "r.jsonl")]
    return main(["prefer", "rank", str(folder / "a.jsonl"), *by, *words])


def test_the_scores_are_the_model_s_rewards_and_what_it_cannot_read_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_reward_model(tmp_path / "model")
    assert rank(tmp_path, model) == 0
    told = capsys.readouterr()
    assert "3 × too long: the reward model has 100 positions" in told.err
    for text in ("2 prompts ranked, 5 different answers", "1 prompts not ranked: none of their answers has a score",
                 "1 answers to ranked prompts have no score"):  # fmt: skip
        assert text in told.out, text
    header, first, second, third = lines_of(tmp_path / "r.jsonl")
    assert header["rater"] == "reward-model" and not header["human"] and third["scores"] == {}
    loaded = load_reward_model(model)
    for asked_one, line in ((PROMPTS[0], first), (PROMPTS[1], second)):
        read = [one for one in asked_one.answers if len(one.text) < 100]
        rewards = loaded.score([[*asked_one.prompt.turns, Message("assistant", one.text)] for one in read])
        assert line["scores"] == pytest.approx(dict(zip([one.id for one in read], rewards, strict=True)), abs=1e-5)
        assert len(set(line["scores"].values())) == len(read)


def test_a_ranking_goes_on_with_equal_bytes_and_not_with_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scored, "CHUNK_PROMPTS", 1)
    model = write_reward_model(tmp_path / "model")
    assert rank(tmp_path, model) == 0
    whole = (tmp_path / "r.jsonl").read_bytes()
    (tmp_path / "r.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:2]) + b'{"pro')
    assert rank(tmp_path, model) == 0 and (tmp_path / "r.jsonl").read_bytes() == whole
    capsys.readouterr()
    assert rank(tmp_path, write_reward_model(tmp_path / "other", seed=1)) == 2
    assert "it was made with another settings weights" in capsys.readouterr().err


def test_a_language_model_gives_no_rewards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rank(tmp_path, write_model(tmp_path / "model")) == 2
    assert "this is a language model and no reward model" in capsys.readouterr().err and not (tmp_path / "r.jsonl").exists()

"""Command lines that cannot be read are answered with what was probably meant."""

from pathlib import Path

import pytest

from fledge.cli.arguments import build_parser, split_overrides


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The message for a command line that is refused with exit code 2."""
    parser = build_parser()
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(split_overrides(argv, parser)[0])
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe and a file of rows in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("r.yaml", "chat.jsonl"):
        (tmp_path / name).write_text("")


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        ("train r.yaml epochs 3", ("'epochs' is no file", "--epochs 3")),
        ("train r.yaml lr=1e-4", ("--lr 1e-4",)),
        ("train r.yaml stages.sft.duration", ("--stages.sft.duration VALUE",)),
        ("train r.yaml —seed 3", ("two ordinary dashes", "--seed")),
        ("train r.yaml -seed 3", ("--seed",)),
        ("train r.yaml --seed = 3", ("write --seed 3, or --seed=3",)),
        ("train r.yaml --seed --name x", ("--seed needs a value",)),
        ("train r.yaml --stages.sft.data.train my data/a.jsonl", ("--stages.sft.data.train 'my data/a.jsonl'",)),
        ("train r.yaml --seed --seed 2", ("--seed needs a value",)),
        ("train r.yaml --seed 1 --seed=2", ("--seed is given twice: 1 and 2", "leave one of them out")),
        ("train r.yaml --a.b 1 --c 1 --a.b 2", ("--a.b is given twice: 1 and 2",)),
        ("train r.yaml --processes 2 --nproc-per-node 3", ("--nproc-per-node is given twice: 2 and 3",)),
        ("data check r.yaml --stage sft --stage dpo", ("--stage is given twice: sft and dpo",)),
        ("generate model hello --top-k 3 --top-k 4", ("--top-k is given twice: 3 and 4",)),
        ("quickstart --minutes 3 --minutes 4", ("--minutes is given twice: 3 and 4",)),
        ("train --config r.yaml", ("fledge train r.yaml",)),
        ("trian r.yaml", ("did you mean `fledge train`?",)),
        ("r.yaml", ("`fledge train r.yaml`",)),
        ("help", ("`fledge --help`",)),
        ("", ("`fledge --help` lists the commands",)),
        ("data chat.jsonl", ("`fledge data stats chat.jsonl`",)),
        ("data chek r.yaml", ("`fledge data check`",)),
        ("prefer smaple m p", ("did you mean `fledge prefer sample`?",)),
        ("prefer", ("required: ACTION",)),
        ("generate model hello world", ("a text of several words stands in quotes",)),
    ],
)
def test_what_was_meant_is_said(capsys: pytest.CaptureFixture[str], words: str, messages: tuple[str, ...]) -> None:
    text = refusal(capsys, *words.split())
    assert all(message in text for message in messages), text


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        ("train r.yaml --seed 3 --a.b=-1", [("seed", "3"), ("a.b", "-1")]),
        ("train r.yaml absent.yaml --x -1", [("x", "-1")]),
        ("data account --limit 3 runs/absent --seed 1", [("seed", "1")]),
        ("train --dry-run r.yaml", []),
        ("train r.yaml --quiet --quiet --allow-change a --allow-change b --seed 1 --seed 1", [("seed", "1"), ("seed", "1")]),
    ],
)
def test_command_lines_that_are_clear_pass(words: str, overrides: list[tuple[str, str]]) -> None:
    parser = build_parser()
    kept, pairs = split_overrides(words.split(), parser)
    parser.parse_args(kept)
    assert pairs == overrides

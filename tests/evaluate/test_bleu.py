"""BLEU-4 is sacrebleu's, with its signature, in evaluations and in scores."""

import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from fledge.cli import main
from fledge.errors import FledgeError
from fledge.evaluate.bleu import corpus_bleu
from fledge.pipeline import Pipeline
from fledge.recipe import recipe_from_dict
from fledge.run import Console
from tests.support import tiny_run
from tests.support.run_directory import events

sacrebleu = pytest.importorskip("sacrebleu")
CHINESE = ["今天天气很好，我们去公园散步吧。", "人工智能是计算机科学的一个分支。", "请列出五种不同的水果。"]

FURTHER = ["chrf", "rouge_l", "refusal", "off_topic", "repetition", "length"]


def page(run: Path) -> str:
    """The report of a run."""
    return (run / "report.html").read_text(encoding="utf-8")


def test_equal_answers_have_100_and_others_less() -> None:
    assert corpus_bleu(CHINESE, CHINESE).value == pytest.approx(100)
    assert 0 <= corpus_bleu([text[::-1] for text in CHINESE], CHINESE).value < 10
    half = corpus_bleu([text[: len(text) // 2] for text in CHINESE], CHINESE)
    assert 0 < half.value < 100 and half.answers == 3


def test_values_and_signatures_are_those_of_the_library() -> None:
    given, english = ["The cat sat on a mat today.", "It is 42."], ["The cat sat on the mat today.", "It is 42, said the fox."]
    expected = sacrebleu.metrics.BLEU(tokenize="zh").corpus_score(["今天天气很好。", *CHINESE[1:]], [CHINESE])
    assert corpus_bleu(["今天天气很好。", *CHINESE[1:]], CHINESE).value == pytest.approx(expected.score, abs=1e-3)
    assert corpus_bleu(given, english).value == pytest.approx(sacrebleu.corpus_bleu(given, [english]).score, abs=1e-3)
    assert "tok:zh" in corpus_bleu(CHINESE, CHINESE).signature and "version:" in corpus_bleu(CHINESE, CHINESE).signature
    assert "tok:13a" in corpus_bleu(given, english).signature
    assert "tok:char" in corpus_bleu(given, english, "char").signature


def test_a_stage_has_it_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = tiny_run.tree(tmp_path / "world", tmp_path / "runs")
    values["stages"] = {"sft": values["stages"]["sft"]}
    values["stages"]["sft"]["evaluation"] |= {
        "generated_answers": {"rows": 5, "max_new_tokens": 6, "bleu": "auto", "metrics": FURTHER}
    }
    values["stages"]["sft"]["metric_for_best_model"] = "bleu"
    run = Pipeline(recipe_from_dict(values), Console(quiet=True)).run()
    for name in ("before", "after"):
        saved = json.loads((run / "sft" / "eval" / f"{name}.json").read_text())
        assert 0 <= saved["bleu"] <= 100 and "tok:" in saved["bleu_signature"]
        assert 0 <= saved["chrf"] <= 100 and "nc:6" in saved["chrf_signature"] and "fledge:" in saved["rouge_l_signature"]
        assert set(FURTHER) <= set(saved) and 0 <= saved["off_topic"] <= 1
    for event in events(run, "sft", "eval"):
        assert {f"eval/{name}" for name in FURTHER} <= set(event)
    assert all(0 <= event["eval/bleu"] <= 100 for event in events(run, "sft", "eval"))
    assert main(["report", str(run)]) == 0
    assert {"BLEU-4", "Refusals", "拒答"} <= {word for word in ("BLEU-4", "Refusals", "拒答") if word in page(run)}
    capsys.readouterr()
    rows = str(tmp_path / "world" / "sft.validation.jsonl")
    assert main(["score", rows, str(run), "--max-new-tokens", "4", "--bleu", "--json", "--metrics", *FURTHER]) == 0
    (scores,) = json.loads(capsys.readouterr().out)["models"].values()
    assert 0 <= scores["bleu"]["value"] <= 100 and "version" in scores["bleu"]["signature"]
    assert set(scores["metrics"]) == set(FURTHER) and scores["metrics"]["off_topic"]["count"] >= 5
    assert main(["score", rows, str(run), "--max-new-tokens", "4", "--metrics", "refusal", "length"]) == 0
    printed = capsys.readouterr().out
    assert "refusals: 0.0% [" in printed and " characters, " in printed


def test_a_missing_library_and_a_metric_without_settings_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = tiny_run.tree(tmp_path / "world", tmp_path / "runs")
    values["stages"] = {"sft": {**values["stages"]["sft"], "metric_for_best_model": "bleu"}}
    values["stages"]["sft"]["evaluation"] |= {"generated_answers": {"rows": 5}}
    with pytest.raises(FledgeError, match=r"bleu needs evaluation\.generated_answers\.bleu"):
        recipe_from_dict(values)
    values["stages"]["sft"]["evaluation"]["generated_answers"]["bleu"] = "zh"
    real = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name.startswith("sacrebleu"):
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(FledgeError, match=r"generated_answers\.bleu needs the package 'sacrebleu'"):
        Pipeline(recipe_from_dict(values), Console(quiet=True)).run()

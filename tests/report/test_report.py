"""The report page and the summary table: complete, self-contained, safe, and tolerant of missing or damaged files."""

import base64
import hashlib
import html as markup
import io
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fledge.errors import FledgeError
from fledge.report import stage_table, write_report
from fledge.report.html_page import digest, script_json
from tests.support.report_run import HOSTILE, dump, write_run


class Page(HTMLParser):
    """Tags with their attributes, script bodies and visible text, as a browser would split them."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.inside = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record the tag; a script begins a new script body."""
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        """Text after an end tag is visible text."""
        self.inside = ""

    def handle_data(self, data: str) -> None:
        """Sort text into script bodies and visible text."""
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        """The visible text with single spaces."""
        return re.sub(r"\s+", " ", "".join(self.words))

    @property
    def ids(self) -> set[str | None]:
        """The ids of all elements."""
        return {attributes.get("id") for _, attributes in self.tags}


def read(run_directory: Path) -> tuple[str, Page]:
    """The report's source and its parsed page."""
    source = write_report(run_directory).read_text(encoding="utf-8")
    return source, Page(source)


def test_report_is_one_html_file_in_the_run_directory(run_directory: Path) -> None:
    assert write_report(run_directory) == run_directory / "report.html"
    assert not list(run_directory.glob("*.partial"))


def test_writing_the_report_twice_gives_the_same_bytes(run_directory: Path) -> None:
    first = write_report(run_directory).read_bytes()
    assert write_report(run_directory).read_bytes() == first


def test_page_loads_nothing_from_the_network(run_directory: Path) -> None:
    source, page = read(run_directory)
    for tag, attributes in page.tags:
        assert tag not in {"iframe", "object", "embed", "base", "form"}
        for name in ("src", "href", "action", "srcset", "poster"):
            target = attributes.get(name) or ""
            assert target == "" or target.startswith(("#", "data:")), (tag, name, target)
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"https?://|@import|url\(", source)


def test_security_policy_allows_only_the_scripts_of_the_page(run_directory: Path) -> None:
    _, page = read(run_directory)
    policy = next(a["content"] or "" for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "img-src data:" in policy and "http" not in policy
    kinds = [a.get("type") for tag, a in page.tags if tag == "script"]
    running = [body for kind, body in zip(kinds, page.scripts, strict=True) if kind is None]
    assert len(running) == 3
    for body in running:
        expected = "sha256-" + base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert expected == digest(body) and f"'{expected}'" in policy


def test_page_of_a_long_run_stays_far_below_a_megabyte(tmp_path: Path) -> None:
    source, _ = read(write_run(tmp_path / "long", steps=8_000))
    assert len(source.encode()) < 500_000


def test_html_in_recipes_and_data_is_shown_as_text_and_never_run(run_directory: Path) -> None:
    summary = json.loads((run_directory / "summary.json").read_text())
    dump(run_directory / "summary.json", summary | {"name": f"run {HOSTILE}"})
    source, page = read(run_directory)
    assert HOSTILE not in source
    assert markup.escape(HOSTILE).replace("&#x27;", "&#39;") in source
    for text in ("Say hello to ", "empty ", "same as line 12 ", "gradient norm spiked ", "run ", "# "):
        assert f"{text}{HOSTILE}" in page.text, text
    assert sum(tag == "script" for tag, _ in page.tags) == 4


def test_chart_data_cannot_close_its_script_element() -> None:
    written = script_json({"a": "</script><!--&\u2028"})
    assert not set("<>&\u2028") & set(written)
    assert json.loads(written) == {"a": "</script><!--&\u2028"}


def test_verdicts_stand_in_the_headline_and_take_the_praise_away(run_directory: Path) -> None:
    evidence = {"accuracy_before": 0.61, "accuracy_after": 0.0, "perplexity_before": 5.2, "perplexity_after": 5.9e6}
    found = [
        {"check": "collapsed", "severity": "error", "message": "in English", "evidence": evidence},
        {"check": "of a later version", "severity": "warning", "message": f"its own words {HOSTILE}", "evidence": {}},
        {"check": "nothing_learned", "severity": "warning", "message": "without figures", "evidence": None},
    ]
    praised = read(run_directory)[0].count('class="value better"')
    dump(run_directory / "dpo" / "result.json", {"verdicts": found})
    source, page = read(run_directory)
    for expected in (
        "The model is destroyed: token accuracy 61.0 % → 0.0 %, perplexity 5.20 → 5.90e+06",
        "模型已损坏：验证答案的词元准确率 61.0 % → 0.0 %",
        f"its own words {HOSTILE}",
        "without figures",
        "destroyed; ",
    ):
        assert expected in page.text, expected
    assert source.count('class="value better"') < praised


def test_what_guards_and_the_doctor_found_stands_in_the_log(run_directory: Path) -> None:
    _, page = read(run_directory)
    assert f"gradient norm spiked {HOSTILE}" in page.text and f"rows repeat {HOSTILE}" in page.text


def test_the_share_of_the_trained_parameters_is_shown_where_an_adapter_is_trained(run_directory: Path) -> None:
    assert "Trained" not in read(run_directory)[1].text
    dump(run_directory / "sft" / "result.json", {"trained_parameters": 3_210_000, "parameters": 3_210_000})
    dump(run_directory / "dpo" / "result.json", {"trained_parameters": 96_300, "parameters": 3_306_300})
    _, page = read(run_directory)
    for expected in (
        "Trained",
        "96.3 k parameters (2.9 %)",
        "训练其中 96.3 k（2.9 %）",
        "96.3 k (2.9 %) of them trained,",
    ):
        assert expected in page.text.replace("\u00a0", " "), expected


def test_the_verdict_of_a_stage_has_its_decision_the_model_that_goes_on_and_its_reasons(run_directory: Path) -> None:
    assert "verdict" not in read(run_directory)[1].ids
    reasons = [
        {"check": "worse", "decision": "roll back", "message": f"loss 1 -> 3 {HOSTILE}", "hint": "lower the learning rate"},
        {"check": "few", "decision": None, "message": "12 items are too few", "hint": ""},
    ]
    verdict = {"decision": "roll back", "goes_on": "start", "reasons": reasons, "thresholds": {}}
    dump(run_directory / "sft" / "result.json", {"verdicts": [], "verdict": verdict})
    _, page = read(run_directory)
    for expected in (
        "roll back回退",
        "the model before the stage goes on",
        f"loss 1 -> 3 {HOSTILE}",
        "→ lower the learning rate",
        "cannot decide",
    ):
        assert expected in page.text, expected
    dump(run_directory / "sft" / "result.json", {"verdict": {"decision": "of a later version", "reasons": "?"}})
    assert "of a later version" in read(run_directory)[1].text


def test_the_distribution_of_losses_and_the_worst_rows_are_shown(run_directory: Path) -> None:
    _, page = read(run_directory)
    drawn = json.loads(page.scripts[1])
    assert {f"stage-1-loss-{name}" for name in ("percentiles", "histogram", "by-position")} <= set(drawn) <= page.ids
    before, after = drawn["stage-1-loss-by-position"]["series"]
    assert before["x"] == [0, 16] and before["y"][1] == 2.431 and after["name"]["en"] == "after"
    assert sum(drawn["stage-1-loss-histogram"]["series"][0]["y"]) == 100
    assert "Validation rows with the highest losses" in page.text and "v.jsonl:7" in page.text and "9.500" in page.text


def test_numbers_carry_their_units(run_directory: Path) -> None:
    _, page = read(run_directory)
    for expected in (
        "3.21 M parameters",
        "600 steps",
        "2.46 M tokens",
        "2 min 42 s",
        "7.612 → 1.634 nats/token",
        "0.693 → 0.214 nats/pair",
        "2,022 → 5.12",
        "7.0 → 61.0 %",
        "46.0 %",
        "90.0 %",
        "(28.7 % after step 75)",
        "[88.0, 94.0] %",
        "12 min 11 s",
        "12.3 MiB",
        "16.0 GiB",
        "8 cores",
        "212 GFLOP/s",
        "2,048 tokens",
        "3.21 bytes/token",
    ):
        assert expected in page.text, expected


def test_page_shows_whether_the_row_counts_of_each_source_add_up(run_directory: Path) -> None:
    _, page = read(run_directory)
    assert f"12,000 rows行 = 11,900 used使用 + 60 too long + 37 duplicate + 3 empty {HOSTILE} ✓ adds up" in page.text
    assert "500 rows行 = 490 used使用 + 0 dropped舍弃 ✗ 10 rows unaccounted for" in page.text
    assert "data/stories.jsonl:481" in page.text


def test_samples_before_and_after_each_stage_are_shown_side_by_side(run_directory: Path) -> None:
    _, page = read(run_directory)
    assert "after pretrainpretrain 之后" in page.text and "at the start开始时" in page.text
    assert "there was a small bird who wanted to fly over the river." in page.text
    assert "cut off" in page.text


def test_a_report_without_samples_says_which_key_gives_some(run_directory: Path) -> None:
    for file in run_directory.glob("*/eval/*.json"):
        dump(file, {**json.loads(file.read_text(encoding="utf-8")), "samples": []})
    _, page = read(run_directory)
    assert "No prompts were answered." in page.text and "generation_samples: {prompts: [" in page.text
    assert "cut off" not in page.text


def test_every_stage_has_the_charts_of_its_kind(run_directory: Path) -> None:
    _, page = read(run_directory)
    common = ("loss", "learning-rate", "gradient-norm", "speed", "memory")
    assert {f"stage-{index}-{name}" for index in range(3) for name in common} <= page.ids
    assert "stage-1-prompts" in page.ids and "stage-0-prompts" not in page.ids
    assert {f"stage-2-{name}" for name in ("rewards", "margins", "accuracy", "logps")} <= page.ids
    drawn = json.loads(page.scripts[1])
    assert set(drawn) <= page.ids
    train, validation = drawn["stage-0-loss"]["series"]
    assert (train["role"], train["noisy"], validation["role"], validation["markers"]) == ("main", True, "eval", True)
    assert drawn["stage-0-gradient-norm"]["log"] is True


def test_unreadable_lines_and_files_are_reported(run_directory: Path) -> None:
    with (run_directory / "dpo" / "events.jsonl").open("a", encoding="utf-8") as events:
        events.write('{"kind": "step"\n[1]\n\n')
    (run_directory / "sft" / "data_report.json").write_text("{", encoding="utf-8")
    _, page = read(run_directory)
    assert re.search(r"Unreadable lines, skipped:\S* 1 · sft/events\.jsonl", page.text)
    assert re.search(r"Unreadable lines, skipped:\S* 2 · dpo/events\.jsonl", page.text)
    assert re.search(r"Could not be read:\S* sft/data_report\.json", page.text)


@pytest.mark.parametrize("count", [1, 5])
def test_page_has_the_charts_of_every_stage(tmp_path: Path, count: int) -> None:
    names = ("pretrain", "sft", "dpo", "sft-again", "last")[:count]
    _, page = read(write_run(tmp_path / "some", names, steps=40))
    assert f"stage-{count - 1}-loss" in page.ids and f"stage-{count}-loss" not in page.ids


def test_report_is_written_when_any_single_file_is_missing(tmp_path: Path) -> None:
    root = write_run(tmp_path / "quickstart", steps=40)
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        copy = tmp_path / "copy"
        shutil.copytree(root, copy)
        (copy / file.relative_to(root)).unlink()
        _, page = read(copy)
        assert "not recorded" in page.text
        shutil.rmtree(copy)


def test_a_folder_that_is_no_run_is_refused_and_nothing_is_written_into_it(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FledgeError, match="this is not a run"):
        write_report(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_run_without_any_stage_is_reported_on_the_page(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    assert write_report(tmp_path).exists()


def test_a_report_is_never_written_through_a_link(run_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for name in ("report.html", "report.html.partial", f".report.html.{os.getpid()}"):
        (run_directory / name).unlink(missing_ok=True)
        (run_directory / name).symlink_to(tmp_path / "mine")
    write_report(run_directory)
    assert (tmp_path / "mine").read_text() == "mine" and not (run_directory / "report.html").is_symlink()


def test_invalid_values_in_any_file_do_not_stop_the_report(tmp_path: Path) -> None:
    stage = tmp_path / "only"
    (stage / "eval").mkdir(parents=True)
    dump(tmp_path / "summary.json", {"stages": ["only", "../..", 3, "absent"], "seconds": "soon"})
    rows = [
        {"kind": "step", "step": 1, "train/loss": float("nan"), "train/grad_norm": 0.0, "train/tokens": None},
        {"kind": "step", "train/loss": 3},
        {"kind": "step", "step": 2, "train/loss": float("inf"), "train/grad_norm": -1},
        {"kind": "alert"},
        {"kind": "checkpoint", "step": 1},
        {"kind": "stop"},
    ]
    (stage / "events.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    dump(stage / "data_report.json", {"sources": [{}, None], "train": 7})
    dump(stage / "eval" / "after.json", {"loss": float("nan"), "generation_samples": [{"prompt": "\ud800", "answer": None}]})
    dump(stage / "eval" / "world.json", {"interval": [0.1], "tasks": {"a": None}, "errors": ["?"], "exact_match": True})
    _, page = read(tmp_path)
    assert "NaN" in page.text and "absent" in page.text and "stage-1-loss" in page.ids
    assert "stage-2-loss" not in page.ids


def test_a_missing_run_directory_raises_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_report(tmp_path / "nowhere")


def test_terminal_table_shows_the_stages_with_their_units(run_directory: Path) -> None:
    from rich.console import Console

    console = Console(width=160, record=True, file=io.StringIO())
    console.print(stage_table(run_directory))
    printed = console.export_text()
    for expected in (
        "pretrain",
        "7.612 → 1.634 nats/token",
        "91.0 % [88.0, 94.0] %",
        "15.3 k tokens/s",
        "not recorded",
    ):
        assert expected in printed, expected

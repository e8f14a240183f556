"""The Python API: what it gives, that its examples run, and that importing it is quick."""

import doctest
import io
import math
import re
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest

import fledge
from fledge.api import model as model_module
from fledge.api import run as run_module
from fledge.api import training as training_module
from tests.support import tiny_run

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `mine.yaml` and the finished run `runs/mine`, as the examples expect them."""
    folder = tmp_path_factory.mktemp("project")
    tree = tiny_run.tree(folder / "world", folder / "runs", name="mine")
    tiny_run.write(folder / "mine.yaml", tree)
    fledge.train(tree, quiet=True)
    return folder


@pytest.mark.parametrize("module", [model_module, run_module, training_module])
def test_every_example_in_a_docstring_runs(module: object, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)  # type: ignore[arg-type]
    assert results.attempted > 0 and results.failed == 0


def test_the_page_about_python_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    namespace: dict[str, object] = {}
    output = io.StringIO()
    with redirect_stdout(output):
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), namespace)
    assert len(blocks) >= 8 and "did you mean 'seed'" in output.getvalue()
    assert (tmp_path / "runs" / "sums" / "report.html").exists()


def test_importing_takes_less_than_a_third_of_a_second_and_loads_no_torch() -> None:
    script = "import sys, fledge; dir(fledge); fledge.train, fledge.Run; print('torch' in sys.modules)"
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        result = subprocess.run([sys.executable, "-c", "import fledge"], check=True)
        seconds.append(time.perf_counter() - started)
        assert result.returncode == 0
    assert min(seconds) < 0.3
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"


def test_every_public_name_exists_and_an_unknown_one_is_an_attribute_error() -> None:
    assert all(getattr(fledge, name) is not None for name in fledge.__all__)
    assert set(fledge.__all__) <= set(dir(fledge))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = fledge.lod  # type: ignore[attr-defined]
    assert (Path(fledge.__file__).parent / "py.typed").exists()


def test_chat_stream_and_generate_give_what_the_command_prints(project: Path) -> None:
    model = fledge.load(project / "runs" / "mine")
    answer = model.chat("你是谁？", max_new_tokens=12)
    assert answer == "".join(model.stream("你是谁？", max_new_tokens=12))
    command = [
        sys.executable,
        "-m",
        "fledge.cli",
        "generate",
        str(project / "runs" / "mine"),
        "你是谁？",
        "--max-new-tokens",
        "12",
    ]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed == answer + "\n"
    texts = model.generate(["A cat", "苹果"], max_new_tokens=6)
    assert texts == [model.generate("A cat", max_new_tokens=6), "".join(model.stream_text("苹果", max_new_tokens=6))]
    sampled = [model.chat("你是谁？", max_new_tokens=12, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_a_score_is_the_sum_of_log_probabilities_of_the_tokens(project: Path) -> None:
    import torch

    model = fledge.load(project / "runs" / "mine" / "pretrain")
    score = model.score("A cat is 一只猫.")
    ids = model.tokenizer.encode_prefix("A cat is 一只猫.")
    decoder = model._engine.model
    with torch.no_grad():
        logps = decoder.logits(decoder(torch.tensor([ids[:-1]])))[0].log_softmax(-1)
    expected = [float(logps[position, token]) for position, token in enumerate(ids[1:])]
    assert score.logprob == pytest.approx(sum(expected), abs=1e-4)
    counted = score.logprobs[~np.isnan(score.logprobs)]
    assert counted == pytest.approx(expected, abs=1e-4)
    assert score.perplexity == pytest.approx(math.exp(-sum(expected) / len(expected)))
    assert score.bits_per_byte == pytest.approx(-sum(expected) / math.log(2) / len("A cat is 一只猫.".encode()))


def test_metrics_have_a_row_for_every_step_and_a_column_for_every_metric(project: Path) -> None:
    run = fledge.Run(project / "runs" / "mine")
    columns = run.metrics("sft", frame=False)
    steps = [event for event in run.stages["sft"].events("step")]
    assert columns["step"].tolist()[-len(steps) :] == [event["step"] for event in steps]
    by_step = dict(zip(columns["step"].tolist(), columns["train/loss"].tolist(), strict=True))
    assert all(by_step[event["step"]] == event["train/loss"] for event in steps)
    names = {name for event in run.stages["sft"].events("step", "system", "eval") for name in event} - {"kind"}
    flat = {name.partition("/")[0] for name in columns}
    assert {name.partition("/")[0] for name in names} <= flat | {"step"}
    assert columns["eval/loss"].dtype == np.float64 and np.isnan(columns["eval/loss"]).any()
    everything = run.metrics(frame=False)
    assert set(everything["stage"]) == {"pretrain", "sft", "dpo"}
    frame = run.metrics(frame=True)
    assert len(frame) == len(everything["step"]) and list(frame.columns) == list(everything)


def test_samples_report_and_stages_are_read_from_the_run_directory(project: Path) -> None:
    run = fledge.Run(project / "runs" / "mine")
    assert {(sample.stage, sample.moment) for sample in run.samples()} == {
        (stage, moment) for stage in ("pretrain", "sft", "dpo") for moment in ("before", "after")
    }
    report = run.report()
    assert report.name == "report.html" and report.exists()
    assert run.stages["dpo"].evaluation("after")["pairs"] > 0 and run.model("sft").path.parts[-4] == "sft"
    assert run.recipe.name == run.name == "mine"


def test_overrides_reach_the_recipe_from_keywords_and_from_dotted_keys(project: Path) -> None:
    resolve = training_module.resolve
    recipe = resolve(project / "mine.yaml", {"seed": 9, "stages__sft__optimizer__learning_rate": 2e-4})
    assert recipe.seed == 9 and recipe.stages["sft"].optimizer.learning_rate == 2e-4
    same = resolve(recipe, {"stages.sft.duration": "2 steps", "generation_samples": {"prompts": ["a: b", "1e5"]}})
    assert same.stages["sft"].duration == "2 steps" and same.generation_samples.prompts == ["a: b", "1e5"]
    assert same.stages["sft"].optimizer.learning_rate == 2e-4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda folder: fledge.load(folder / "nothing"), "there is no such run or model"),
        (lambda folder: fledge.Run(folder), "there is no such run"),
        (lambda folder: fledge.Run(folder / "runs" / "mine").metrics("stf"), "no stage 'stf'"),
        (lambda folder: fledge.train({"stages": {}}), "at least one stage"),
        (lambda folder: fledge.train(3), "a path, a mapping or a Recipe"),  # type: ignore[arg-type]
        (lambda folder: fledge.load(folder / "runs" / "mine").chat("a", tempratur=1.0), "unknown parameter 'tempratur'"),
        (lambda folder: fledge.load(folder / "runs" / "mine").chat("a", top_p=0.0), "top_p"),
        (lambda folder: fledge.load(folder / "runs" / "mine").chat([{"role": "usr", "content": "a"}]), "unknown role 'usr'"),
        (lambda folder: fledge.load(folder / "runs" / "mine").chat([{"role": "user", "text": "a"}]), "role and content"),
        (lambda folder: fledge.load(folder / "runs" / "mine").chat("word " * 500), "no room for an answer"),
        (lambda folder: fledge.load(folder / "runs" / "mine").score(""), "empty"),
    ],
)
def test_a_mistake_is_a_fledge_error_that_names_it(call: object, message: str, project: Path) -> None:
    with pytest.raises(fledge.FledgeError) as caught:
        call(project)  # type: ignore[operator]
    assert message in caught.value.text()

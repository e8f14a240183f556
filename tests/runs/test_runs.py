"""`fledge runs`: lists, shows and compares runs, stages, checkpoints and folders of results."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from fledge.cli import main
from fledge.errors import FledgeError
from fledge.evaluate.records import write_set_result
from fledge.run import exclusive_lock
from fledge.runs.compare import compare
from fledge.runs.listing import list_runs
from fledge.runs.prune import prune_runs
from fledge.runs.read import find_subject
from fledge.runs.show import show
from fledge.runs.verdict import run_verdict
from tests.runs.conftest import set_result


def printed(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    assert main(list(argv)) == code
    return capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> Any:
    return json.loads(printed(capsys, *argv, "--json", code=code))


class TestList:
    def test_each_run_has_its_stages_state_size_loss_and_verdict(self, runs):
        a, b, c = sorted(list_runs(runs), key=lambda run: run.name)
        assert (a.stages, a.state, a.loss, a.verdict) == ({"sft": (20, 20)}, "finished", 1.0, "release")
        assert (b.loss, b.verdict) == (0.5, "keep training")
        assert (c.stages, c.state, c.loss, c.verdict) == ({"sft": (12, 20)}, "at sft", 3.0, None)
        assert a.bytes > 1000

    def test_a_damaged_run_is_listed_with_what_is_wrong(self, runs):
        (runs / "b" / "sft" / "result.json").write_text("{", encoding="utf-8")
        states = {run.name: run.state for run in list_runs(runs)}
        assert states["b"].startswith("damaged: ")
        assert states["a"] == "finished"

    def test_the_table_and_the_json(self, runs, capsys):
        text = printed(capsys, "runs", "list")
        assert "runs/a" in text and "sft 20/20" in text and "keep training" in text
        assert [run["name"] for run in as_json(capsys, "runs", "list", "runs")].count("c") == 1
        assert "no run here" in printed(capsys, "runs", "list", "runs/a/sft")
        assert main(["runs", "list", "nowhere"]) == 2


class TestNames:
    @pytest.mark.parametrize("name", ["a", "runs/a"])
    def test_a_run_is_named_by_its_path_or_its_name(self, runs, name):
        found = find_subject(name)
        assert (found.stage, found.step, found.stages) == (None, None, ["sft"])

    @pytest.mark.parametrize("name", ["a/sft@step-10", "runs/a/sft@10", "a@step-00000010"])
    def test_a_step_of_a_stage(self, runs, name):
        found = find_subject(name)
        assert (found.stage, found.step) == ("sft", 10)

    @pytest.mark.parametrize(
        ("name", "message"),
        [("x", "no such run"), ("a/sft@step-7", "nothing was evaluated at step 7"), ("runs", "this is not a run"),
         ("runs/a/recipe.yaml", "this is a file")],
    )  # fmt: skip
    def test_what_is_none_is_refused(self, runs, name, message):
        with pytest.raises(FledgeError, match=message) as error:
            find_subject(name)
        assert error.value.hint

    def test_the_hint_for_a_step_names_the_steps_there_are(self, runs):
        with pytest.raises(FledgeError) as error:
            find_subject("a/sft@7")
        assert error.value.hint == "there are step-10, step-20"


class TestShow:
    def test_metrics_checkpoints_sets_and_verdict(self, runs):
        stage = show(find_subject("a"))["stages"]["sft"]
        assert (stage["before"]["loss"], stage["after"]["loss"]) == (5.0, 1.0)
        assert [(one["step"], one["saved"], one["goes_on"]) for one in stage["checkpoints"]] == [
            (10, False, False),
            (20, True, True),
        ]
        assert stage["sets"]["world"]["after"]["passed"]["value"] == 0.2
        assert stage["sets"]["world"]["before"]["passed"]["value"] == 0.0
        assert stage["verdict"]["decision"] == "release"

    def test_what_the_doctor_found_is_shown_up_to_the_step(self, runs, capsys):
        assert show(find_subject("a"))["stages"]["sft"]["findings"] == []
        found = {"kind": "finding", "step": 15, "cause": "no warm-up", "severity": "warning", "message": "it began too fast"}
        with (runs / "a" / "sft" / "events.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({**found, "confidence": confidence}) + "\n" for confidence in ("likely", "certain"))
        (one,) = show(find_subject("a"))["stages"]["sft"]["findings"]
        assert (one["step"], one["cause"], one["confidence"]) == (15, "no warm-up", "certain")
        assert show(find_subject("a/sft@10"))["stages"]["sft"]["findings"] == []
        assert "warning at step 15: it began too fast" in printed(capsys, "runs", "show", "a")

    def test_what_is_printed(self, runs, capsys):
        text = printed(capsys, "runs", "show", "a")
        for part in ("20 of 20 steps", "loss: 5 → 1", "world", "verdict: release", "thresholds from the recipe: max_loss 1.5"):
            assert part in text
        assert "not finished" in printed(capsys, "runs", "show", "c")
        assert as_json(capsys, "runs", "show", "a/sft@10")["stages"]["sft"]["after"]["loss"] == 2.0


class TestCompare:
    def test_recipes_metrics_sets_and_forgetting(self, runs):
        found = compare(["a", "b"])
        assert found.recipe == [("stages.sft.optimizer.learning_rate", [0.001, 0.003])]
        assert [(row.subject, row.now["loss"]) for row in found.stages] == [("a", 1.0), ("b", 0.5)]
        tests = {pair.comparison.name: pair.comparison.metrics for pair in found.sets}
        assert tests["world"]["passed"].found == "higher"
        assert tests["world"]["passed"].better is True
        assert tests["texts"]["bits_per_byte"].difference == 0
        assert [(one.subject, one.comparison.metrics["bits_per_byte"].found) for one in found.forgetting] == [
            ("a", "higher"),
            ("b", "higher"),
        ]
        assert found.missing == [("sft/alone", ["b"])]

    def test_checkpoints_of_one_stage(self, runs):
        found = compare(["a/sft@10", "a/sft@step-20", "a"])
        assert [(row.stage, row.now["loss"]) for row in found.stages] == [
            ("sft@step-10", 2.0),
            ("sft@step-20", 1.0),
            ("sft", 1.0),
        ]
        assert found.recipe == []
        (pair,) = found.sets
        assert (pair.first, pair.second, pair.comparison.metrics["passed"].difference) == ("a/sft@10", "a", 0.1)

    def test_folders_of_results(self, runs, tmp_path):
        for name, right in (("one", 10), ("two", 12)):
            write_set_result(tmp_path / name, set_result("world", [1.0] * right + [0.0] * (50 - right)))
        found = compare([str(tmp_path / "one"), str(tmp_path / "two")])
        assert found.stages == []
        assert found.sets[0].comparison.metrics["passed"].found == "too few to decide"

    def test_what_is_printed(self, runs, capsys):
        text = printed(capsys, "runs", "compare", "a", "b", "c")
        for part in (
            "learning_rate",
            "sft/world (prompts): a → b",
            "higher: better",
            "forgetting",
            "set sft/alone, which b, c lack",
        ):
            assert part in text, part
        assert as_json(capsys, "runs", "compare", "a", "b")["sets"][0]["comparison"]["same_set"] is True
        assert main(["runs", "compare", "a"]) == 2

    def test_a_stage_that_only_one_recipe_has_is_one_difference(self, runs):
        shutil.copytree(runs / "b", runs / "d")
        text = (runs / "d" / "recipe.yaml").read_text(encoding="utf-8")
        (runs / "d" / "recipe.yaml").write_text(text.replace("  sft:\n", "  more:\n", 1), encoding="utf-8")
        keys = [key for key, _ in compare(["a", "d"]).recipe]
        assert keys == ["stages.sft", "stages.more"]


class TestVerdict:
    @pytest.mark.parametrize(("name", "code"), [("a", 0), ("b", 10), ("a/sft", 0)])
    def test_exit_codes(self, runs, capsys, name, code):
        assert as_json(capsys, "runs", "verdict", name, code=code)["stages"] == {"sft": ["release", "keep training"][code > 0]}
        assert printed(capsys, "runs", "verdict", name, code=code).startswith("sft: verdict: ")

    def test_a_run_without_a_verdict_is_an_error(self, runs):
        with pytest.raises(FledgeError, match="no stage is finished"):
            run_verdict(find_subject("c"))
        with pytest.raises(FledgeError, match="at the end of a stage"):
            run_verdict(find_subject("a/sft@10"))

    def test_a_run_with_a_stage_to_come_is_not_released(self, runs, capsys):
        file = Path("runs/a/recipe.yaml")
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
        tree["stages"]["dpo"] = {**tree["stages"]["sft"], "kind": "preference"}
        file.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
        found = as_json(capsys, "runs", "verdict", "a", code=10)
        assert (found["decision"], found["unfinished"]) == ("keep training", ["dpo"])
        assert "keep training; not finished: dpo" in printed(capsys, "runs", "verdict", "a", code=10)
        assert main(["runs", "verdict", "a/sft"]) == 0

    def test_the_stage_that_was_trained_last_is_judged(self, runs):
        shutil.copytree("runs/a/sft", "runs/a/after")
        file = Path("runs/a/after/result.json")
        result = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps({**result, "order": 1}), encoding="utf-8")
        shutil.copytree("runs/a/after", "runs/a/zero")
        (Path("runs/a/zero/result.json")).write_text(json.dumps({**result, "order": 0}), encoding="utf-8")
        assert run_verdict(find_subject("a")).stage == "after"

    def test_a_run_of_an_earlier_version_is_told(self, runs):
        file = Path("runs/a/sft/result.json")
        result = json.loads(file.read_text(encoding="utf-8"))
        del result["verdict"]
        file.write_text(json.dumps(result), encoding="utf-8")
        with pytest.raises(FledgeError, match="before there were verdicts"):
            run_verdict(find_subject("a"))


def test_text_of_runs_cannot_control_the_terminal(runs, capsys):
    file = Path("runs/a/sft/result.json")
    file.write_text(file.read_text(encoding="utf-8").replace("the stage has learned", "\\u001b[2Jx"), encoding="utf-8")
    for argv in (("runs", "show", "a"), ("runs", "verdict", "a"), ("runs", "show", "a", "--json")):
        assert "\x1b[2J" not in printed(capsys, *argv)


def test_a_copy_of_a_checkpoint_is_no_step(runs):
    shutil.copytree("runs/a/sft/checkpoints/step-00000020", "runs/a/sft/checkpoints/step-00000020-backup")
    shutil.copytree("runs/a/sft/eval/step-00000010", "runs/a/sft/eval/step-00000010-backup")
    assert [one["step"] for one in show(find_subject("a"))["stages"]["sft"]["checkpoints"]] == [10, 20]


def test_a_number_that_does_not_exist_is_null_in_json(runs, capsys):
    file = Path("runs/a/sft/eval/after.json")
    file.write_text('{"loss": NaN, "samples": []}', encoding="utf-8")
    text = printed(capsys, "runs", "show", "a", "--json")
    assert "NaN" not in text
    assert json.loads(text)["stages"]["sft"]["after"]["loss"] is None


class TestPrune:
    @pytest.fixture
    def checkpoints(self, runs: Path) -> Path:
        """The checkpoints of a finished stage: the last is step 20, the best step 10, and others are left."""
        folder = runs / "a" / "sft" / "checkpoints"
        for name in ("step-00000000", "step-00000005", "step-00000010", "damaged-step-00000007", ".removed-step-00000003"):
            (folder / name / "model").mkdir(parents=True)
            (folder / name / "model" / "model.safetensors").write_bytes(bytes(1000))
        (folder / "last").symlink_to("step-00000020")
        (folder / "best").symlink_to("step-00000010")
        return folder

    def test_what_goes_on_and_last_and_best_stay(self, runs, checkpoints, capsys):
        told = as_json(capsys, "runs", "prune", "runs/a")
        gone = [".removed-step-00000003", "damaged-step-00000007", "step-00000005"]
        assert sorted(told["stages"][0]["removed"]) == gone and told["bytes"] == 3000 and not told["removed"]
        assert len(list(checkpoints.iterdir())) == 8
        assert "nothing was removed: add --yes" in printed(capsys, "runs", "prune", "a")
        text = printed(capsys, "runs", "prune", "a", "--yes")
        assert "freed" in text and "step-00000005" in text
        assert sorted(path.name for path in checkpoints.iterdir()) == [
            "best",
            "last",
            "step-00000000",
            "step-00000010",
            "step-00000020",
        ]
        assert "0 B would be freed" in printed(capsys, "runs", "prune", "a") or prune_runs(["a"], remove=False)[0].bytes == 0

    def test_the_model_that_goes_on_stays_where_it_is_neither_last_nor_best(self, runs, checkpoints):
        result = json.loads((checkpoints.parent / "result.json").read_text(encoding="utf-8"))
        result["model"] = "checkpoints/step-00000005/model"
        (checkpoints.parent / "result.json").write_text(json.dumps(result), encoding="utf-8")
        prune_runs(["a"], remove=True)
        assert (checkpoints / "step-00000005" / "model" / "model.safetensors").exists()

    def test_an_unfinished_stage_and_one_with_broken_links_stay_as_they_are(self, runs, checkpoints):
        (unfinished,) = prune_runs(["c"], remove=True)
        assert unfinished.skipped == "it is not finished" and not unfinished.removed
        (checkpoints / "last").unlink()
        (checkpoints / "last").mkdir()  # as a copy that follows links leaves it
        (found,) = prune_runs(["a"], remove=True)
        assert "checkpoints/last is no link" in found.skipped and (checkpoints / "step-00000005").exists()

    def test_nothing_is_removed_where_a_name_is_wrong_or_a_process_writes(self, runs, checkpoints, capsys):
        for name in ("nowhere", "a/sft", "a/sft@step-10"):
            assert main(["runs", "prune", "a", name, "--yes"]) == 2
        with exclusive_lock(runs / "a"), pytest.raises(FledgeError, match="another process is writing here"):
            prune_runs(["a"], remove=True)
        assert (checkpoints / "step-00000005").exists()

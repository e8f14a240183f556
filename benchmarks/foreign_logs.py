"""Logs that other trainers write, healthy and faulty, made here and examined by the doctor without a hint.

Small runs of transformers' Trainer, TRL (SFT, DPO, GRPO), litgpt and LLaMA-Factory, and of the scripts of minimind and nanoGPT
(foreign_cases.py says what is wrong with each). Libraries that are installed elsewhere are named with `--library
NAME=FOLDER[:FOLDER]` (trl, litgpt, llamafactory), checkouts with `--source minimind=FOLDER` and `--source nanogpt=FOLDER`;
cases of a trainer that is not there are left out, and counted in `left_out`. The log alone is examined (depth `curves`), as
the trainer wrote it. `read`: logs with a training loss; `right`: nothing said about a healthy run, or a right cause first of
those that are at least likely; `abstained`: a faulty run without such a cause; `wrong`: any other.
`--fixtures DIR` keeps the logs, with a table of what must be said about each.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from foreign_cases import CASES, ForeignCase
from foreign_fixtures import keep
from foreign_held_out import READINGS
from measure import data_folder, options, report

from fledge.doctor import DoctorOptions, examine
from fledge.errors import FledgeError

SCRIPTS = ("minimind", "nanogpt")
LIBRARIES = {"hf": "trl", "trl_sft": "trl", "trl_dpo": "trl", "trl_grpo": "trl"}
"""Trainer → the library that is installed for it; trainers of one library run in one process. Others: their own name."""
SURE = ("certain", "likely")


def main() -> None:
    """Make the logs that can be made, examine them, and print what was said."""
    chosen = _options()
    cases = list(READINGS.get(chosen.held_out, CASES))
    cases = [case for case in cases if not chosen.only or any(case.name.startswith(name) for name in chosen.only)]
    cases = [case for case in cases if case.quick] if chosen.quick else cases
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(chosen.work or temporary).resolve()
        work.mkdir(parents=True, exist_ok=True)
        if not chosen.examine:
            make(cases, work, _pairs(chosen.library), _pairs(chosen.source))
        made = [case for case in cases if (work / case.name / case.log).exists() and not (work / case.name / "failed").exists()]
        said = [judged(case, work / case.name / case.log) for case in made]
        if chosen.fixtures:
            keep(made, work, Path(chosen.fixtures))
    for one in said:
        print(f"{one['name']:26} {one['verdict']:10} {one['wrong'] or 'healthy':44} {one['said']}")
    counts = Counter(one["verdict"] for one in said)
    read = sum(one["read"] for one in said)
    seconds = max((one["seconds"] for one in said), default=0.0)
    names = ("right", "abstained", "wrong")
    wrong = [one["name"] for one in said if one["verdict"] == "wrong"]
    report({"logs": len(said), "read": read, **{name: counts[name] for name in names}, "left_out": len(cases) - len(made),
            "wrong_ones": wrong, "slowest_s": round(seconds, 2)})  # fmt: skip


def _options() -> argparse.Namespace:
    parser = options(__doc__ or "")
    parser.add_argument("--work", help="folder of the runs; by default one that is removed")
    parser.add_argument("--library", action="append", default=[], help="NAME=FOLDERS where it is installed")
    parser.add_argument("--source", action="append", default=[], help="minimind=FOLDER or nanogpt=FOLDER of a checkout")
    parser.add_argument("--only", nargs="+", default=[], help="beginnings of names of cases")
    parser.add_argument(
        "--held-out", type=int, choices=READINGS, help="cases of foreign_held_out.py, in a folder of the others"
    )
    parser.add_argument("--examine", action="store_true", help="make nothing: examine what stands in --work")
    parser.add_argument("--fixtures", help="keep the logs in this folder")
    return parser.parse_args()


def _pairs(texts: list[str]) -> dict[str, str]:
    return {name: value for name, _, value in (text.partition("=") for text in texts)}


# --- making -------------------------------------------------------------------------------------------------------------


def make(cases: list[ForeignCase], work: Path, libraries: dict[str, str], sources: dict[str, str]) -> None:
    """Run the cases, a process for each trainer that is a library, and one for each run of a script."""
    if (data_folder() / "llamafactory").is_dir() and not (work / "llamafactory-data").exists():
        shutil.copytree(data_folder() / "llamafactory", work / "llamafactory-data")
    for name in dict.fromkeys(LIBRARIES.get(case.trainer, case.trainer) for case in cases):
        its = [case for case in cases if LIBRARIES.get(case.trainer, case.trainer) == name]
        if name not in SCRIPTS:
            library(name, its, work, libraries.get(name, ""))
        elif name in sources:
            for case in its:
                scripted(case, work, Path(sources[name]).resolve())


def library(name: str, cases: list[ForeignCase], work: Path, folders: str) -> None:
    """Run the cases of one library in one process."""
    listed = work / f"{name}.json"
    listed.write_text(json.dumps([asdict(case) for case in cases]), encoding="utf-8")
    paths = ":".join(path for path in (folders, os.environ.get("PYTHONPATH", "")) if path)
    environment = {**os.environ, "PYTHONPATH": paths, "TORCHDYNAMO_DISABLE": "1", "DISABLE_VERSION_CHECK": "1"}
    script = Path(__file__).with_name("foreign_trainers.py")
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, str(script), str(work), str(data_folder()), str(listed)], env=environment, check=False,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    print(f"{name}: {len(cases)} cases in {time.perf_counter() - began:.0f} s", flush=True)


def scripted(case: ForeignCase, work: Path, source: Path) -> None:
    """Run a case with a script of a checkout; what it prints is its log."""
    folder = work / case.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    prepare, command = {"minimind": (_minimind_data, _minimind), "nanogpt": (_nanogpt_data, _nanogpt)}[case.trainer]
    code = prepare(case, work, source)
    with (folder / case.log).open("w", encoding="utf-8") as log:
        done = subprocess.run(
            [sys.executable, *command(case, folder)], cwd=code, stdout=log, stderr=subprocess.DEVNULL, check=False,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    if done.returncode:
        (folder / "failed").write_text(str(done.returncode), encoding="utf-8")
    print(f"{case.name}: exit {done.returncode}", flush=True)


def _copied(source: Path, to: Path, names: Sequence[str]) -> Path:
    for name in names:
        if not (to / name).exists():
            copy = shutil.copytree if (source / name).is_dir() else shutil.copy
            to.mkdir(parents=True, exist_ok=True)
            copy(source / name, to / name)
    return to


def _minimind_data(case: ForeignCase, work: Path, source: Path) -> Path:
    """Chats and texts of alpaca in the form of minimind, beside a copy of its code."""
    code = _copied(source, work / "minimind-code", ("trainer", "model", "dataset"))
    rows = json.loads((data_folder() / "llamafactory" / "alpaca_zh_demo.json").read_text(encoding="utf-8"))
    rows += json.loads((data_folder() / "llamafactory" / "alpaca_en_demo.json").read_text(encoding="utf-8"))
    rows = rows[:: max(1, len(rows) // case.how["rows"])][: case.how["rows"]]
    empty = {"reasoning_content": "", "tools": "", "tool_calls": ""}
    with (code / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            turns = [("user", row["instruction"]), ("assistant", row["output"])]
            chat = [{"role": role, "content": text, **empty} for role, text in turns]
            is_text = case.how["script"] == "train_pretrain"
            made: dict[str, Any] = {"text": row["output"]} if is_text else {"conversations": chat}
            file.write(json.dumps(made, ensure_ascii=False) + "\n")
    return code / "trainer"


def _minimind(case: ForeignCase, folder: Path) -> list[str]:
    how = case.how
    return [
        f"{how['script']}.py", "--save_dir", "../out", "--epochs", str(how["epochs"]),
        "--batch_size", str(how.get("batch", 16)), "--learning_rate", str(how["learning_rate"]), "--device", "cpu",
        "--num_workers", "0", "--accumulation_steps", "1", "--log_interval", "1",
        "--hidden_size", str(how.get("width", 64)), "--num_hidden_layers", "2",
        "--max_seq_len", "96", "--data_path", "../rows.jsonl", "--from_weight", "pretrain" if case.after else "none",
        "--save_weight", "pretrain" if case.name == "minimind-pretrain" else case.name,
    ]  # fmt: skip


def _nanogpt_data(case: ForeignCase, work: Path, source: Path) -> Path:
    """Shakespeare by characters, prepared by nanoGPT's own script beside a copy of its code."""
    code = _copied(source, work / "nanogpt-code", ("train.py", "model.py", "configurator.py", "config", "data"))
    count = case.how.get("characters")
    folder = code / "data" / f"characters-{count or 'all'}"
    if not (folder / "train.bin").exists():
        folder.mkdir(exist_ok=True)
        shutil.copy(code / "data" / "shakespeare_char" / "prepare.py", folder)
        text = next((data_folder() / "shakespeare").glob("*.txt")).read_text(encoding="utf-8")
        (folder / "input.txt").write_text(text[:count], encoding="utf-8")
        subprocess.run([sys.executable, "prepare.py"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return code


def _nanogpt(case: ForeignCase, folder: Path) -> list[str]:
    how = case.how
    steps = how["max_iters"]
    settings = {
        "device": "cpu", "compile": False, "dtype": "float32", "dataset": f"characters-{how.get('characters', 'all')}",
        "eval_interval": steps // 10, "eval_iters": 4, "log_interval": 1, "block_size": 64,
        "batch_size": how.get("batch", 16), "n_layer": 2, "n_head": 4, "n_embd": how.get("width", 64),
        "max_iters": steps, "lr_decay_iters": steps, "learning_rate": how["learning_rate"],
        "min_lr": how["learning_rate"] / 10, "warmup_iters": how.get("warmup_iters", 15), "gradient_accumulation_steps": 1,
        "out_dir": "../nanogpt-out",
    }  # fmt: skip
    return ["train.py", "config/train_shakespeare_char.py", *(f"--{name}={value}" for name, value in settings.items())]


# --- examining ----------------------------------------------------------------------------------------------------------


def judged(case: ForeignCase, log: Path) -> dict[str, Any]:
    """What the doctor says about a log, and whether it is right."""
    began = time.perf_counter()
    try:
        found = examine(log, DoctorOptions(depth="curves"))[0]
    except FledgeError as error:
        return {"name": case.name, "wrong": case.wrong, "verdict": "wrong", "said": f"not read: {error.what}", "read": False,
                "seconds": time.perf_counter() - began}  # fmt: skip
    causes = [
        one.cause
        for one in found.diagnoses.found
        if one.sign.finding.confidence in SURE and one.sign.finding.severity != "info"
    ]
    return {
        "name": case.name,
        "wrong": case.wrong,
        "verdict": verdict(case, causes, found.is_healthy),
        "said": ", ".join(causes) or ("nothing" if found.is_healthy else "cannot tell"),
        "read": found.case.log.get("train/loss") is not None,
        "seconds": time.perf_counter() - began,
    }


def verdict(case: ForeignCase, causes: list[str], is_healthy: bool) -> str:
    """`right`, `abstained` or `wrong`, by the causes that are at least likely, the first one first."""
    told = [cause for cause in causes if cause not in case.also]
    if any(cause not in case.right for cause in told):
        return "wrong"
    if not case.right:
        return "right" if is_healthy or causes else "wrong"
    return "right" if told else "abstained"


if __name__ == "__main__":
    main()

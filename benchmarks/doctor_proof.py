"""Does the proof by experiment tell a right patch from one that changes nothing that matters?

Small models are trained on a generated world, each with one fault that a setting mends: rates, schedule, batch, clipping,
decay, dropout, losses of preferences, reward models, adapters, epochs, context, duplicates. For each, the proof of
`fledge doctor RUN --prove` is given the right patch, and a placebo: a key that changes nothing, or nothing that matters.
Prints what each was judged, and how often the right patch "helps" and the placebo does not. Two sound runs get a patch that
ruins them, which must make them worse.
"""

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import options, report

from fledge.doctor.prove import Proof, prove
from fledge.errors import FledgeError
from fledge.evaluate.intervals import wilson_interval
from fledge.pipeline import Pipeline
from fledge.recipe import recipe_from_dict
from fledge.recipe.load import merge
from fledge.run import Console, RunDirectory, resolve_model_path
from fledge.world import Sizes, build

RUNTIME = {"precision": "fp32", "compile": False, "attention": "sdpa", "threads": 1, "device": "cpu"}
MODEL = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96,
    "max_position_embeddings": 128,
}  # fmt: skip
SIZES = Sizes(pretrain=700, sft=700, preference=200, validation=64, questions=20)
STEPS = {"pretrain": 60, "sft": 70, "preference": 30, "lora": 50, "kto": 40, "reward": 40}
ROWS = {"pretrain": 4, "sft": 4, "preference": 3, "lora": 4, "kto": 6, "reward": 3}
FILES = {"lora": "sft", "reward": "preference"}
"""Kind of case → the rows that it trains on, where these are another kind's."""
IDENTITY_COPIES = 1500
MINUTES = 6.0  # of a proof: enough for whole stages here
QUICK = ("rate 0", "rate × 0.03, new weights")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A faulty run. `kind`: of stage. `fault`: what differs from the sound stage of the kind. `patch`: what mends it;
    `placebo`: what does not. `sections`: the rest of the recipe that differs. `worse`: whether the patch ruins a
    sound run instead."""

    name: str
    kind: str
    fault: dict[str, Any]
    patch: dict[str, Any]
    placebo: dict[str, Any]
    category: str = "learning rate"
    cause: str = ""
    sections: dict[str, Any] = field(default_factory=dict)
    worse: bool = False


RATES = {
    "pretrain": 3e-2,
    "sft": 1e-2,
    "preference": 3e-4,
    "lora": 1e-2,
    "kto": 3e-4,
    "reward": 1e-3,
}  # the best of a scan, or near it
RATE = "optimizer.learning_rate"


def _optimizer(**keys: Any) -> dict[str, Any]:
    return {"optimizer": keys}


def _cases(world: Path) -> list[Case]:
    sft, pretrain, pairs = RATES["sft"], RATES["pretrain"], RATES["preference"]
    eps, betas, keep = {"optimizer.eps": 2e-8}, {"optimizer.betas": [0.9, 0.951]}, {"checkpoint.keep_last": 5}
    looks, steady = {"evaluation.max_packed_rows": 15}, {"optimizer.max_grad_norm": 1.01}
    flooded, few = str(world / "flooded.jsonl"), str(world / "few.jsonl")
    return [
        Case(name="rate × 30", kind="sft", fault=_optimizer(learning_rate=30 * sft), patch={RATE: sft}, placebo=eps),
        Case(name="rate × 0.03", kind="sft", fault=_optimizer(learning_rate=0.03 * sft), patch={RATE: sft}, placebo=betas),
        Case(name="rate 0", kind="sft", fault=_optimizer(learning_rate=1e-12), patch={RATE: sft}, placebo=keep),
        Case(name="rate × 0.03, new weights", kind="pretrain", fault=_optimizer(learning_rate=0.03 * pretrain),
             patch={RATE: pretrain}, placebo={RATE: 0.0301 * pretrain}),
        Case(name="no warm-up, high rate", kind="pretrain", cause="no warm-up",
             fault={**_optimizer(learning_rate=10 * pretrain, max_grad_norm=None), "schedule": {"warmup": 0.0}},
             patch={RATE: pretrain, "schedule.warmup": 0.1}, placebo=looks),
        Case(name="batch huge, few updates", kind="sft", category="batch",
             fault={"batch": {"micro_batch_size": 70}, "duration": "1 epochs"},
             patch={"batch.micro_batch_size": 4}, placebo=betas),
        Case(name="warm-up takes the stage", kind="pretrain", cause="warm-up too long",
             fault={**_optimizer(learning_rate=3 * pretrain), "schedule": {"warmup": 0.97}}, patch={"schedule.warmup": 0.05},
             placebo=eps),
        Case(name="never decays", kind="pretrain", cause="schedule cut before it decays",
             fault={**_optimizer(learning_rate=3 * pretrain), "schedule": {"name": "constant", "warmup": 0.05}},
             patch={"schedule.name": "linear"}, placebo=betas),
        Case(name="never decays, six times as long", kind="pretrain", cause="schedule cut before it decays",
             fault={**_optimizer(learning_rate=3 * pretrain), "schedule": {"name": "constant", "warmup": 0.05},
                    "duration": "360 steps"},
             patch={"schedule.name": "linear"}, placebo=betas),
        Case(name="too few updates", kind="sft", category="duration", cause="too few updates", fault={"duration": "8 steps"},
             patch={"duration": "70 steps"}, placebo=eps),
        Case(name="clipped to nothing", kind="sft", category="learning rate", fault=_optimizer(max_grad_norm=1e-8),
             patch={"optimizer.max_grad_norm": 1.0}, placebo={"optimizer.max_grad_norm": 1.02e-8}),
        Case(name="weight decay huge", kind="sft", category="learning rate", fault=_optimizer(weight_decay=100.0),
             patch={"optimizer.weight_decay": 0.1}, placebo=betas),
        Case(name="dropout extreme", kind="pretrain", category="model", fault={}, sections={"model": {"dropout": 0.8}},
             patch={"model.dropout": 0.0}, placebo=steady),
        Case(name="too many epochs", kind="sft", category="duration",
             fault={"data": {"train": few}, "duration": "25 epochs", "select_checkpoint": "last"},
             patch={"select_checkpoint": "best"}, placebo=keep),
        Case(name="context cuts the answers", kind="sft", category="data",
             fault={"data": {"max_seq_len": 40, "truncation": "keep_start"}},
             patch={"data.max_seq_len": 128}, placebo=steady),
        Case(name="duplicates", kind="sft", category="data",
             fault={"data": {"train": flooded, "clean": {"exact_duplicates": False}}},
             patch={"data.clean.exact_duplicates": True}, placebo=eps),
        Case(name="label smoothing", kind="sft", category="targets", fault={"label_smoothing": 0.6},
             patch={"label_smoothing": 0.0}, placebo={"label_smoothing": 0.601}),
        Case(name="DPO: beta huge", kind="preference", category="preferences", fault={"beta": 50.0}, patch={"beta": 0.1},
             placebo=looks),
        Case(name="DPO: beta tiny", kind="preference", category="preferences",
             fault={"beta": 0.0005, **_optimizer(learning_rate=6 * pairs)}, patch={"beta": 0.2}, placebo=betas),
        Case(name="DPO: labels smoothed away", kind="preference", category="preferences", fault={"label_smoothing": 0.49},
             patch={"label_smoothing": 0.0}, placebo=keep),
        Case(name="DPO: rate × 30", kind="preference", fault=_optimizer(learning_rate=30 * pairs), patch={RATE: pairs},
             placebo=eps),
        Case(name="adapter: rate of full tuning", kind="lora", fault=_optimizer(learning_rate=1e-4),
             patch={RATE: RATES["lora"]}, placebo=betas),
        Case(name="adapter: hardly scaled", kind="lora", category="model", fault={"adapter": {"lora_alpha": 0.02}},
             patch={"adapter.lora_alpha": 16.0}, placebo=eps),
        Case(name="KTO: rate × 30", kind="kto", fault=_optimizer(learning_rate=30 * RATES["kto"]),
             patch={RATE: RATES["kto"]}, placebo=betas),
        Case(name="reward model: rate × 0.01", kind="reward", fault=_optimizer(learning_rate=0.01 * RATES["reward"]),
             patch={RATE: RATES["reward"]}, placebo=eps),
        Case(name="sound: rate ruined", kind="sft", fault={}, patch={RATE: 30 * sft}, placebo=eps, worse=True),
        Case(name="sound: beta ruined", kind="preference", category="preferences", fault={}, patch={"beta": 50.0},
             placebo=betas, worse=True),
    ]  # fmt: skip


# -- runs ----------------------------------------------------------------------------------------------------------------


def make_world(folder: Path) -> Path:
    """The rows: a world, the same flooded with copies of one row, and a few rows of it."""
    world = folder / "world"
    build(5, world, SIZES)
    lines = (world / "sft.jsonl").read_text(encoding="utf-8").splitlines()
    copies = [lines[0]] * IDENTITY_COPIES
    half = len(lines) // 2
    (world / "flooded.jsonl").write_text("\n".join([*lines[:half], *copies, *lines[half:]]) + "\n", encoding="utf-8")
    (world / "few.jsonl").write_text("\n".join(lines[:48]) + "\n", encoding="utf-8")
    for part in ("", ".validation"):
        pairs = (world / f"preference{part}.jsonl").read_text(encoding="utf-8").splitlines()
        labelled = [row for pair in map(json.loads, pairs) for row in _labelled(pair)]
        (world / f"kto{part}.jsonl").write_text(
            "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in labelled), "utf-8"
        )
    return world


def _labelled(pair: dict[str, Any]) -> list[dict[str, Any]]:
    """The two answers of a pair as rows of their own, with a label."""
    return [
        {"messages": [*pair["messages"], {"role": "assistant", "content": pair[name]}], "label": name == "chosen"}
        for name in ("chosen", "rejected")
    ]


def sound(world: Path, kind: str, start: Path | None) -> dict[str, Any]:
    """A stage of a kind without a fault."""
    rows = FILES.get(kind, kind)
    adapter = {"adapter": {"r": 8, "lora_alpha": 16}} if kind == "lora" else {}
    return {
        "kind": {"lora": "sft"}.get(kind, kind),
        "data": {"train": str(world / f"{rows}.jsonl"), "validation": str(world / f"{rows}.validation.jsonl"),
                 "max_seq_len": 128},
        "batch": {"micro_batch_size": ROWS[kind]},
        "optimizer": {"learning_rate": RATES[kind]},
        "schedule": {"warmup": 0.05},
        "duration": f"{STEPS[kind]} steps",
        "evaluation": {"every_steps": max(10, STEPS[kind] // 3), "max_packed_rows": 16},
        **({} if start is None else {"init_from": str(start)}),
        **adapter,
    }  # fmt: skip


def train(folder: Path, name: str, stages: dict[str, Any], sections: Mapping[str, Any]) -> Path:
    """Train a run; returns its directory, also of one that a guard has ended."""
    tree = {
        "name": name,
        "output": str(folder / "runs"),
        "seed": 3,
        "runtime": RUNTIME,
        "generation_samples": {},
        "model": MODEL,
    }
    recipe = recipe_from_dict(merge({**tree, "stages": stages}, dict(sections)))
    try:
        return Pipeline(recipe, Console(quiet=True)).run()
    except FledgeError as error:
        run = RunDirectory(folder / "runs" / name)
        if not all(run.stage(stage).has_begun() for stage in stages):
            raise
        print(f"{name} ended early: {error.what}", flush=True)
        return run.root


def start_models(folder: Path, world: Path) -> dict[str, Path]:
    """Stage → the model that runs of the kind start from, and the tokenizer."""
    stages = {"pretrain": {**sound(world, "pretrain", None), "duration": "120 steps"}, "sft": sound(world, "sft", None)}
    run = train(folder, "start", stages, {"tokenizer": {"vocab_size": 800}})
    base, tuned = (resolve_model_path(str(run / stage)) for stage in stages)
    kinds = {"sft": base, "lora": base, "preference": tuned, "kto": tuned, "reward": tuned}
    return {**kinds, "tokenizer": run / "tokenizer"}


@dataclass(frozen=True)
class Judged:
    """A case, what was judged of its patch and of its placebo, and the seconds of its run and of both proofs."""

    case: Case
    patch: Proof
    placebo: Proof
    seconds: tuple[float, float, float]

    @property
    def patch_is_right(self) -> bool:
        """Whether the patch was judged as it is."""
        return self.patch.outcome == ("makes it worse" if self.case.worse else "helps")

    def as_dict(self) -> dict[str, Any]:
        """The case as JSON values."""
        return {
            "case": self.case.name,
            "ruined": self.case.worse,
            "right": self.patch_is_right,
            "patch": self.patch.outcome,
            "placebo": self.placebo.outcome,
            "gain": round(self.patch.effect.gain, 4),
            "interval": [round(value, 4) for value in self.patch.effect.interval],
            "placebo_gain": round(self.placebo.effect.gain, 5),
            "placebo_interval": [round(value, 5) for value in self.placebo.effect.interval],
            "useful": round(self.patch.effect.useful, 4),
            "pairs": [len(self.patch.seeds), len(self.placebo.seeds)],
            "seconds": [round(value, 1) for value in self.seconds],
        }


def judge(folder: Path, world: Path, case: Case, starts: dict[str, Path], seeds: int) -> Judged:
    """Train the run of a case, and prove its patch and its placebo."""
    begun = time.monotonic()
    stage = merge(sound(world, case.kind, starts.get(case.kind)), case.fault)
    sections = {"tokenizer": {"path": str(starts["tokenizer"])}, **case.sections}
    run = train(folder, "".join(c if c.isalnum() else "-" for c in case.name), {"stage": stage}, sections)
    times = [time.monotonic()]
    settings = {"minutes": MINUTES, "seeds": seeds, "category": case.category, "cause": case.cause}
    proofs = []
    for patch in (case.patch, case.placebo):
        proofs.append(prove(run, "stage", patch, console=Console(quiet=True), **settings))
        times.append(time.monotonic())
    shutil.rmtree(run, ignore_errors=True)
    seconds = (times[0] - begun, times[1] - times[0], times[2] - times[1])
    return Judged(case, proofs[0], proofs[1], seconds)


def share(found: list[bool]) -> dict[str, Any]:
    """How many of how many, with the 95 % interval of their share."""
    low, high = wilson_interval(sum(found), len(found))
    rate = sum(found) / max(1, len(found))
    return {"right": sum(found), "of": len(found), "share": round(rate, 3), "interval": [round(low, 3), round(high, 3)]}


def main() -> None:
    """Judge all cases, and report."""
    parser = options("Does the proof tell a right patch from a placebo?")
    parser.add_argument("--only", nargs="*", default=[], help="cases whose names contain one of these texts")
    parser.add_argument("--seeds", type=int, default=3, help="pairs of runs of each proof, at first")
    parser.add_argument(
        "--results", type=Path, help="file of results, a line for each case; cases that it has are not repeated"
    )
    chosen = parser.parse_args()
    begun = time.monotonic()
    file: Path | None = chosen.results
    lines = file.read_text(encoding="utf-8").splitlines() if file is not None and file.exists() else []
    judged: dict[str, dict[str, Any]] = {one["case"]: one for one in map(json.loads, lines)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = make_world(folder)
        starts = start_models(folder, world)
        print(f"start models: {time.monotonic() - begun:.1f} s", flush=True)
        for case in _cases(world):
            named = not chosen.only or any(text in case.name for text in chosen.only)
            if case.name in judged or not named or (chosen.quick and case.name not in QUICK):
                continue
            judged[case.name] = judge(folder, world, case, starts, chosen.seeds).as_dict()
            print(json.dumps(judged[case.name], ensure_ascii=False), flush=True)
            if file is not None:
                file.write_text(
                    "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in judged.values()), encoding="utf-8"
                )
    values = list(judged.values())
    faulty, ruined = ([one for one in values if one["ruined"] == kind] for kind in (False, True))
    report(
        {
            "patches_that_help": share([one["right"] for one in faulty]),
            "placebos_that_do_not": share([one["placebo"] not in ("helps", "makes it worse") for one in values]),
            "ruined_is_told": share([one["right"] for one in ruined]),
            "seconds_of_a_proof": round(statistics.median(one["seconds"][1] for one in values), 1) if values else None,
            "seconds": round(time.monotonic() - begun, 1),
            "quick": chosen.quick,
        }
    )


if __name__ == "__main__":
    main()

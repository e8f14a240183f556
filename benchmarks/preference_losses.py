"""Every loss of preferences on the quickstart's world: from its SFT model, over learning rates, values of β, and seeds.

Needs a finished quickstart: `--run runs/quickstart`. Each run trains the SFT model for some updates on the world's pairs (KTO:
on single answers with labels, made of the same pairs). All models are measured alike, against the SFT model as the reference:
`accuracy` of the implicit rewards on held-out pairs, `drift` of the chosen answers in nats per token, and of greedy answers to
held-out questions the share that is right in content and the share with a bad habit.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from measure import report

from fledge.data import StageDataset
from fledge.model.loading import load_model
from fledge.objective.base import with_derived
from fledge.objective.preference import DPOObjective
from fledge.pipeline import Pipeline
from fledge.prepare import Preparation
from fledge.quickstart.grading import grade_answers
from fledge.recipe import recipe_from_dict
from fledge.recipe.sections.preference import PAIR_LOSSES, KtoSettings
from fledge.run import Console
from fledge.run.events import read_events
from fledge.run.text_files import read_json
from fledge.tokenizer import load_tokenizer
from fledge.training.validation import ValidationSet, validate
from fledge.world.builder import load_questions

LOSSES: dict[str, dict[str, Any]] = {
    "sigmoid": {},
    "sigmoid+sft": {"loss_type": "sigmoid", "sft_loss_weight": 1.0},
    "robust": {"label_smoothing": 0.1},
    "sigmoid_norm": {},
    "hinge": {},
    "ipo": {},
    "simpo": {},
    "orpo": {},
    "kto": {},
}
RATES = (3e-5, 1e-4, 3e-4, 1e-3)
RUNTIME = {"precision": "fp32", "compile": False, "attention": "blocked"}


@dataclass(frozen=True)
class Trial:
    """What one run tries."""

    loss: str
    rate: float
    beta: float
    seed: int


def labelled(source: Path, target: Path) -> Path:
    """The pairs of a file as labelled answers: of each pair one answer, in turns the chosen and the rejected one."""
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    lines = []
    for number, row in enumerate(rows):
        answer = row["chosen" if number % 2 == 0 else "rejected"]
        lines.append(json.dumps({"messages": row["messages"], "completion": answer, "label": number % 2 == 0}))
    target.write_text("\n".join(lines), encoding="utf-8")
    return target


def stage_of(trial: Trial, world: Path, folder: Path, start: Path, *, steps: int, pairs: tuple[int, int]) -> dict[str, Any]:
    """The stage of one run. `pairs`: how many are trained on, and held out."""
    train, validation = world / "preference.jsonl", world / "preference.validation.jsonl"
    settings: dict[str, Any] = {"kind": "preference", "loss_type": trial.loss, **LOSSES[trial.loss]}
    if trial.loss == "kto":
        train, validation = labelled(train, folder / "train.jsonl"), labelled(validation, folder / "validation.jsonl")
        settings = {"kind": "kto"}
    return {
        **settings,
        "beta": trial.beta,
        "init_from": str(start),
        "data": {
            "train": {"path": str(train), "max_samples": pairs[0]},
            "validation": {"path": str(validation), "max_samples": pairs[1]},
            "max_seq_len": 128,
            "clean": {"decontaminate": False},
        },
        "duration": f"{steps} steps",
        "batch": {"micro_batch_size": 4},
        "optimizer": {"learning_rate": trial.rate},
        "evaluation": {"max_packed_rows": 16, "every_steps": steps},
        "select_checkpoint": "last",
    }


class World:
    """What every run is measured with: the SFT model as the reference, held-out pairs, and held-out questions."""

    def __init__(self, run: Path, questions: int, pairs: tuple[int, int]) -> None:
        self.run, self.world, self.sizes = run, run / "world", pairs
        self.start = run / "sft" / read_json(run / "sft" / "result.json", dict)["model"]
        self.tokenizer = load_tokenizer(self.start)
        held_out = load_questions(self.world)
        self.questions = held_out[:: max(1, len(held_out) // questions)]
        self.reference = load_model(self.start).eval()
        with tempfile.TemporaryDirectory() as folder:
            recipe = recipe_from_dict(self.recipe(Trial("sigmoid", 1e-4, 0.1, 1), Path(folder), 20))
            self.pairs: StageDataset = Preparation(recipe, lambda line: None).stage_data("stage", self.tokenizer)

    def recipe(self, trial: Trial, folder: Path, steps: int) -> dict[str, Any]:
        """The recipe of one run."""
        stage = stage_of(trial, self.world, folder, self.start, steps=steps, pairs=self.sizes)
        return {"name": "run", "output": str(folder), "seed": trial.seed, "runtime": RUNTIME, "stages": {"stage": stage}}

    def measure(self, model: Any) -> dict[str, float]:
        """The figures of a model."""
        objective, validation = DPOObjective(loss_type="sigmoid", beta=0.1, reference=self.reference), self.pairs.validation
        assert validation is not None
        found = with_derived(validate(model, ValidationSet(validation, objective, 64), 8))
        grades = grade_answers(model, self.tokenizer, self.questions)
        return {
            "accuracy": found["rewards/accuracies"],
            "likelier": found["logps/accuracies"],
            "drift_chosen": found["drift/chosen"],
            "drift_rejected": found["drift/rejected"],
            "content": grades["content_match"],
            "habits": grades["habit_rate"],
        }

    def outcome(self, trial: Trial, steps: int) -> dict[str, Any]:
        """Train one run and measure its model."""
        folder = Path(tempfile.mkdtemp())
        try:
            run = Pipeline(recipe_from_dict(self.recipe(trial, folder, steps)), Console(quiet=True)).run()
            guards = [event["check"] for event in read_events(run / "stage" / "events.jsonl") if event["kind"] == "guard"]
            with torch.no_grad():
                figures = self.measure(load_model(run / "stage" / "checkpoints" / "last" / "model").eval())
        finally:
            shutil.rmtree(folder)
        rounded = {name: round(value, 4) for name, value in figures.items()}
        return {**asdict(trial), **rounded, "guards": guards}


def trials(losses: list[str], rates: list[float], factors: list[float], seeds: int) -> Iterator[Trial]:
    """Each run. `factors`: of the loss's default β."""
    for seed, loss, factor, rate in product(range(1, seeds + 1), losses, factors, rates):
        name = LOSSES[loss].get("loss_type", loss)
        beta = KtoSettings.model_fields["beta"].default if name == "kto" else PAIR_LOSSES[name].beta
        yield Trial(loss, rate, beta * factor, seed)


def main() -> None:
    """Train all runs, print a line for each, and one JSON object last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one rate and one seed, in less than a minute")
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"), help="a finished quickstart")
    parser.add_argument("--steps", type=int, default=40, help="updates of each run")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of each loss and rate")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="learning rates")
    parser.add_argument("--beta-factors", type=float, nargs="+", default=[1.0], help="β, as multiples of its default")
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=LOSSES, help="losses")
    parser.add_argument("--pairs", type=int, nargs=2, default=(400, 150), help="pairs that are trained on, and held out")
    parser.add_argument("--questions", type=int, default=100, help="held-out questions")
    chosen = parser.parse_args()
    started = time.perf_counter()
    world = World(chosen.run, 20 if chosen.quick else chosen.questions, (100, 40) if chosen.quick else tuple(chosen.pairs))
    print(json.dumps({"loss": "start", **world.measure(world.reference)}), flush=True)
    rates, losses = ([3e-4], chosen.losses[:1]) if chosen.quick else (chosen.rates, chosen.losses)
    found = []
    for trial in trials(losses, rates, chosen.beta_factors, chosen.seeds):
        found.append(world.outcome(trial, 10 if chosen.quick else chosen.steps))
        print(json.dumps(found[-1]), flush=True)
    best = {loss: max((one for one in found if one["loss"] == loss), key=lambda one: one["accuracy"]) for loss in losses}
    seconds = round(time.perf_counter() - started, 1)
    report({"benchmark": "preference_losses", "runs": len(found), "best": best, "seconds": seconds})


if __name__ == "__main__":
    main()

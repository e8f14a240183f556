"""Shared by the benchmarks of training: text, packed data, and a training step of fledge."""

import time
from pathlib import Path

import torch
from measure import data_folder

from fledge.autotune.autotune import DTYPES, ComputeConfig, autotune, head_kernel
from fledge.data import PackedDataset, collect, encode
from fledge.model.decoder import Decoder
from fledge.model.frozen_weights import round_frozen_weights
from fledge.objective import CausalLMObjective, Objective
from fledge.optim.build import build_optimizers
from fledge.plan.horizon import compute_steps
from fledge.plan.lr_schedule import learning_rate
from fledge.recipe import Recipe
from fledge.tokenizer import Tokenizer, train_tokenizer
from fledge.training.batch_loader import BatchLoader
from fledge.training.batch_source import DatasetSource, StepBatch
from fledge.training.train_step import StepOutput, TrainStep


def web_text(quick: bool, folder: Path) -> list[str]:
    """Wikipedia and web pages; the quickstart's world, made in `folder`, where there is no real data."""
    real = data_folder() / "llamafactory"
    if real.exists():
        return [str(real / name) for name in (("c4_demo.jsonl",) if quick else ("wiki_demo.txt", "c4_demo.jsonl"))]
    return [world_file("pretrain", folder)]


def world_file(name: str, folder: Path) -> str:
    """A file of the quickstart's world, made in `folder`."""
    from fledge.world import build

    build(7, folder)
    return str(folder / f"{name}.jsonl")


def packed(recipe: Recipe, name: str, tokenizer: Tokenizer | None = None) -> tuple[PackedDataset, Tokenizer]:
    """The training rows of a stage, and a tokenizer: by default one of 6,400 tokens trained on them."""
    collected = collect(recipe.stages[name], name, 0)
    tokenizer = tokenizer or train_tokenizer(collected.tokenizer_texts(), 6400)
    return encode(collected, tokenizer).train, tokenizer


def fresh(recipe: Recipe, vocab: int) -> Decoder:
    """The recipe's model with its first weights."""
    model = Decoder(recipe.model, vocab)
    model.init_weights(0)
    return model


class Training:
    """A model and its training steps as in the trainer: batches are made one step ahead.

    It computes with `decision`, by default with the result of autotune. A call takes one step and returns its seconds.
    """

    def __init__(
        self,
        recipe: Recipe,
        name: str,
        data: PackedDataset,
        model: Decoder,
        decision: ComputeConfig | None = None,
        *,
        objective: Objective | None = None,
    ) -> None:
        """`objective`: by default that of language models."""
        self.stage = recipe.stages[name]
        rows = self.stage.batch.micro_batch_rows
        self.horizon = compute_steps(self.stage.duration, self.stage.batch, data.packed_rows_in, data.packed_length)
        self.model = model
        make = lambda kernel: objective or CausalLMObjective(0.0, kernel)  # noqa: E731
        self.decision = decision or autotune(recipe.runtime, model, data.batch(0, rows), make, micro_steps=10_000, log=print)
        round_frozen_weights(model, DTYPES[self.decision.precision])
        self.decision.apply(model)
        model.train()
        objective = objective or CausalLMObjective(kernel=head_kernel(self.decision))
        optimizers = build_optimizers(model, self.stage.optimizer)
        source = DatasetSource(data, self.horizon, rows, objective.normalizer)
        self.loader = BatchLoader(source, self.horizon.steps, torch.device(self.decision.device))
        max_grad_norm = self.stage.optimizer.max_grad_norm
        self.train_step = TrainStep(model, objective, optimizers, max_grad_norm=max_grad_norm, seed=0)
        self.step = 0
        self.last: StepOutput | None = None

    def learn(self) -> StepBatch:
        """Take one step and return its batch."""
        batch, data_seconds = self.loader.batch(self.step)
        lr = learning_rate(self.step, self.horizon.steps, self.stage.optimizer, self.stage.schedule)
        self.last = self.train_step(batch, lr, data_seconds)
        self.step += 1
        return batch

    def __call__(self) -> float:
        """Take one step; returns its seconds."""
        started = time.perf_counter()
        self.learn()
        return time.perf_counter() - started

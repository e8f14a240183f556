"""Data and training runs of the checks, made of the pieces that the trainer is made of."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import fledge
from fledge.autotune.autotune import DTYPES, ComputeConfig, head_kernel
from fledge.autotune.benchmark import matmul_peak, product_sizes
from fledge.data import PackedDataset
from fledge.data.storage import Examples
from fledge.distributed.context import DistributedContext
from fledge.model.decoder import Decoder
from fledge.objective import CausalLMObjective, DPOObjective
from fledge.optim.build import build_optimizers
from fledge.optim.grad_scaler import GradScaler
from fledge.plan.horizon import TrainingHorizon
from fledge.recipe import ModelConfig
from fledge.recipe.schema import OptimizerConfig
from fledge.training.batch_loader import BatchLoader
from fledge.training.batch_source import DatasetSource
from fledge.training.train_step import StepOutput, TrainStep
from gpu.frame import CAPABILITY, CUDA, DEVICE, HALF, SMOKE

TINY: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96,
    "max_position_embeddings": 256,
}  # fmt: skip
MIXTURE: dict[str, Any] = {"qk_norm": True, "moe": {"num_experts": 4, "num_experts_per_tok": 2}}
BEST = "varlen" if CAPABILITY >= (8, 0) else "sdpa" if CUDA else "blocked"
STEPS = 100_000
_peaks: dict[str, float] = {}


def examples(count: int, low: int, high: int, vocab: int, supervised: float = 1.0, per: int = 1) -> Examples:
    """Random sequences of `low` to `high` tokens, of which a share `supervised` are targets."""
    random = np.random.default_rng(0)
    offsets = np.concatenate(([0], np.cumsum(random.integers(low, high, count * per)))).astype(np.int64)
    weights = (random.random(offsets[-1]) < supervised).astype(np.float32)
    tokens = random.integers(1, vocab, offsets[-1]).astype(np.int64)
    return Examples(tokens=tokens, weights=weights, offsets=offsets, sequences_per_example=per)


def tiny_data(per: int = 1, supervised: float = 1.0) -> PackedDataset:
    """Rows for the tiny model: of text, or (`per` 2) of pairs."""
    made = examples(240, 12, 90, 400, supervised, per)
    return PackedDataset(made, 192 if per == 2 else 128, pad=0, seed=0, split_documents=per == 1 and supervised == 1.0)


def preset(name: str) -> dict[str, Any]:
    """The sizes of a preset; of a tiny model with its experts in the smoke test."""
    file = Path(fledge.__file__).parent / "recipe" / "presets" / f"{name}.yaml"
    sizes = yaml.safe_load(file.read_text(encoding="utf-8"))["model"]
    return {**TINY, **{key: sizes[key] for key in ("moe", "qk_norm") if key in sizes}} if SMOKE else sizes


def pairs_objective(data: PackedDataset, device: torch.device) -> DPOObjective:
    """A DPO objective with a made-up reference table."""
    table = torch.full((data.examples.count, 2), -200.0, device=device)
    return DPOObjective(loss_type="sigmoid", beta=0.1, sft_loss_weight=0.2, reference=table)


@dataclass(kw_only=True)
class Way:
    """How a run computes."""

    precision: str = "fp32"
    attention: str = "sdpa"
    compile: bool = False
    optimizer: str = "adamw"
    deterministic: bool = False
    checkpoint_every: int = 0
    device: torch.device = DEVICE
    model: dict[str, Any] = field(default_factory=dict)


class Run:
    """A model in training: `step` performs one update of `count` micro-batches of `rows` rows."""

    def __init__(self, way: Way, data: PackedDataset, rows: int, count: int, *, vocab: int = 400, lr: float = 1e-3) -> None:
        self.way, self.data, self.lr, self.number = way, data, lr, 0
        self.tokens = rows * count * data.packed_length
        self.config = ModelConfig(**{**TINY, **way.model})
        self.model = Decoder(self.config, vocab)
        self.model.init_weights(0)
        self.model.activation_checkpoint_every = way.checkpoint_every
        compute = ComputeConfig(
            device=way.device.type, precision=way.precision, attention=way.attention, compile=way.compile,
            threads=torch.get_num_threads(), deterministic=way.deterministic,
        )  # fmt: skip
        compute.apply(self.model).train()
        is_pairs = data.examples.sequences_per_example == 2
        self.objective = pairs_objective(data, way.device) if is_pairs else CausalLMObjective(kernel=head_kernel(compute))
        settings = OptimizerConfig(name=way.optimizer, learning_rate=lr, betas=(0.9, 0.95), weight_decay=0.1)  # type: ignore[arg-type]
        self.optimizers = build_optimizers(self.model, settings)
        self.grad_scaler = GradScaler(way.device) if way.precision == "fp16" else None
        self.train_step = TrainStep(
            self.model, self.objective, self.optimizers, max_grad_norm=1.0, seed=7, grad_scaler=self.grad_scaler
        )
        horizon = TrainingHorizon(
            steps=STEPS, rows=STEPS * rows * count, micro_batch_size=rows, gradient_accumulation_steps=count,
            initial_accumulation_steps=count,
        )  # fmt: skip
        source = DatasetSource(data, horizon, rows, self.objective.normalizer)
        self.loader = BatchLoader(source, STEPS, way.device, DistributedContext())

    def step(self, closely: bool = False) -> StepOutput:
        """One update."""
        batch, waited = self.loader.batch(self.number)
        self.number += 1
        return self.train_step(batch, self.lr, waited, closely)

    def weights(self) -> torch.Tensor:
        """All weights in one vector, float64 in main memory."""
        return torch.cat([parameter.detach().double().flatten().cpu() for parameter in self.model.parameters()])

    def close(self) -> None:
        """End the thread of the data."""
        self.loader.close()


def matmul_flops(precision: str, config: ModelConfig) -> float:
    """The measured peak of matrix products in this precision, the reference of MFU."""
    if precision not in _peaks:
        sizes = product_sizes(config, DEVICE.type) if CUDA else [(256, 64, 96)]
        _peaks[precision] = matmul_peak(DEVICE.type, DTYPES[precision], sizes, 0.6 if CUDA else 0.05)
    return _peaks[precision]


HALF_WAY = Way(precision=HALF if CUDA else "fp32", attention=BEST)

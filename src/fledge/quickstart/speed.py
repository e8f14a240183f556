"""The training speed of this machine, measured on the quickstart's model before its recipe is made."""

import time
from collections.abc import Callable

import torch

from fledge.autotune.autotune import ComputeConfig, autotune, head_kernel
from fledge.autotune.benchmark import wait_for
from fledge.data import Batch
from fledge.model.decoder import Decoder
from fledge.model.protocol import LanguageModel
from fledge.objective import CausalLMObjective
from fledge.optim.build import build_optimizers
from fledge.quickstart.budget import MICRO_BATCH_SIZE
from fledge.quickstart.recipe import MAX_SEQ_LEN, MODEL, VOCAB_SIZE
from fledge.recipe import ModelConfig
from fledge.recipe.schema import OptimizerConfig, RuntimeConfig

TRAINING_FRACTION = 0.95  # of the time of a run; evaluations and checkpoints take the rest
EXPECTED_STEPS = 1000  # micro-batches that autotune weighs the time of compilation against
MIN_STEPS, MIN_SECONDS = 5, 4.0
DOCUMENT_TOKENS = 48  # Σ n² / Σ n over the documents n of a micro-batch: 58 in pretraining, 43 in SFT, 45 in DPO


def measure_speed(log: Callable[[str], None]) -> float:
    """Packed rows per second of training the quickstart's model, measured on random tokens, less the time of evaluations."""
    log("measuring this machine …")
    model = Decoder(ModelConfig(**MODEL), VOCAB_SIZE)
    model.init_weights(0)
    compute = autotune(
        RuntimeConfig(),
        model,
        _random_batch(),
        objective=lambda kernel: CausalLMObjective(kernel=kernel),
        micro_steps=EXPECTED_STEPS,
        log=log,
    )
    return TRAINING_FRACTION * rows_per_second(model, compute)


def rows_per_second(model: LanguageModel, compute: ComputeConfig) -> float:
    """Packed rows per second of training the model on random tokens."""
    compute.apply(model)
    on_host, objective = _random_batch(), CausalLMObjective(kernel=head_kernel(compute))
    batch, normalizer = on_host.to(model.device), objective.normalizer(on_host)
    optimizers = build_optimizers(model, OptimizerConfig(name="muon", learning_rate=1e-4))

    def train_step() -> None:
        (objective(model, batch).loss / normalizer).backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        wait_for(compute.device)  # a GPU has only been told what to do

    train_step()
    start, steps = time.perf_counter(), 0
    while steps < MIN_STEPS or time.perf_counter() - start < MIN_SECONDS:
        train_step()
        steps += 1
    return MICRO_BATCH_SIZE * steps / (time.perf_counter() - start)


def _random_batch() -> Batch:
    """One micro-batch of random tokens [B, T], in documents of about the length of the quickstart's."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCAB_SIZE, (MICRO_BATCH_SIZE, MAX_SEQ_LEN), generator=generator)
    places = torch.arange(MAX_SEQ_LEN).repeat(MICRO_BATCH_SIZE, 1)
    return Batch(
        input_ids=tokens,
        targets=tokens,
        loss_weights=torch.ones(tokens.shape),
        position_ids=places % DOCUMENT_TOKENS,
        documents=places // DOCUMENT_TOKENS + 1,
        sequence_ids=torch.zeros_like(tokens),
        num_sequences=1,
        examples=(0,),
        known_target_index=torch.arange(tokens.numel()),
    )

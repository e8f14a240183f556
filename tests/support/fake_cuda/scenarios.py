"""What is run on fake CUDA: whole updates, evaluation and generation. As a program it prints JSON:
{scenario: {piece: {"waits": {place: number}, "launches": number}}}, or {scenario: {"error": text}}."""

import json
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.support.fake_cuda import stub

Pieces = dict[str, dict[str, Any]]


def main(library: str, names: Sequence[str]) -> None:
    """Run scenarios by their names and print what was seen."""
    stub.load(Path(library))
    import torch

    stub.pretend((9, 0))
    torch.set_num_threads(1)
    seen: dict[str, Any] = {}
    for name in names:
        try:
            seen[name] = SCENARIOS[name]()
        except Exception as error:
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/torch/" not in frame.filename]
            where = "\n".join(f"{frame.filename}:{frame.lineno}: {frame.line}" for frame in frames[-6:])
            seen[name] = {"error": f"{type(error).__name__}: {error}\n{where}"}
    print(json.dumps(seen))


def _taken(watch: Any) -> dict[str, Any]:
    """What was counted since the last call."""
    taken = {"waits": dict(watch.waits), "launches": watch.launches}
    watch.waits.clear()
    watch.launches = 0
    return taken


def _model(**changes: Any) -> Any:
    """A decoder in main memory, with values: only such a one can be moved to the device, and only once."""
    from fledge.model.decoder import Decoder
    from tests.support.decoders import VOCAB, make_config

    sizes = {"hidden_size": 64, "intermediate_size": 64, "max_position_embeddings": 256, **changes}
    return Decoder(make_config(**sizes), VOCAB)


def _packed(kind: str) -> Any:
    from tests.support.packed import pack, pack_pairs, random_pairs, random_sequences

    if kind == "preference":
        return pack_pairs(random_pairs(64), packed_length=64)
    return pack(random_sequences([20 + 7 * (number % 9) for number in range(96)]), packed_length=128)


def _stage(kind: str, optimizer: str) -> Any:
    from fledge.recipe.schema import PreferenceStage, PretrainStage, SftStage

    classes: dict[str, Any] = {"pretrain": PretrainStage, "sft": SftStage, "preference": PreferenceStage}
    settings = {"name": optimizer, "learning_rate": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.1}
    batch = {"micro_batch_size": 4}
    return classes[kind].model_validate({"kind": kind, "data": {"train": "x"}, "optimizer": settings, "batch": batch})


def _objective(kind: str, data: Any, reference: Any = None) -> Any:
    """The objective of a kind of stage. `reference`: of a preference stage, a model in main memory; None: a table."""
    import torch

    from fledge.objective import CausalLMObjective
    from tests.support.packed import dpo

    if kind != "preference":
        return CausalLMObjective()
    if reference is None:
        return dpo(torch.zeros(data.examples.count, 2).to("cuda"))
    return dpo(_on_cuda(reference, "bf16", "sdpa").eval())


def _on_cuda(model: Any, precision: str, attention: str) -> Any:
    from fledge.autotune.compute_config import ComputeConfig

    return ComputeConfig(device="cuda", precision=precision, attention=attention, compile=False, threads=1).apply(model)


def update(
    kind: str = "pretrain",
    *,
    precision: str = "bf16",
    attention: str = "sdpa",
    optimizer: str = "adamw",
    keeps_reference_model: bool = False,
    checkpoint_every: int = 0,
    micro_steps: int = 2,
    closely: bool = False,
    **model: Any,
) -> Pieces:
    """`step`: the third update of a stage with all that belongs to it. `closely`: also `details`, the fourth, which is measured
    closely, together with the fifth, in which its figures are read."""
    from fledge.autotune.compute_config import ComputeConfig
    from fledge.monitor.run_logger import LogTargets
    from fledge.plan.horizon import TrainingHorizon
    from fledge.recipe.schema import LoggingConfig
    from fledge.run import Console, StageDirectory
    from fledge.run.stopping import SignalHandler
    from fledge.training.context import TrainContext
    from fledge.training.trainer import Trainer
    from tests.support.fake_cuda.watch import watched

    data, decoder, reference = _packed(kind), _model(**model), _model() if keeps_reference_model else None
    with watched() as watch, tempfile.TemporaryDirectory() as folder, Console(quiet=True).progress("step", 9) as progress:
        _on_cuda(decoder, precision, attention).train()
        decoder.activation_checkpoint_every = checkpoint_every
        context = TrainContext(
            stage=_stage(kind, optimizer),
            horizon=TrainingHorizon(
                steps=9, rows=36 * micro_steps, micro_batch_size=4,
                gradient_accumulation_steps=micro_steps, initial_accumulation_steps=micro_steps,
            ),
            seed=7,
            model=decoder,
            objective=_objective(kind, data, reference),
            data=data,
            locate_example=str,
            compute=ComputeConfig(
                device="cuda", precision=precision, attention=attention, compile=False, threads=1,
                measurements={"matmul_peak_flops": 1e15},
            ),
            log=LogTargets(directory=StageDirectory(Path(folder)), config=LoggingConfig(every_steps=3)),
            write_model=lambda folder, weights: None,
            stopping=SignalHandler(print, ""),
        )  # fmt: skip
        trainer = Trainer(context, Console(quiet=True))
        trainer.start(progress)
        try:
            pieces = []
            for _ in range(5 if closely else 3):
                trainer.step()
                pieces.append(_taken(watch))
        finally:
            trainer.close()
    if not closely:
        return {"step": pieces[2]}
    both = Counter(pieces[3]["waits"]) + Counter(pieces[4]["waits"])
    return {"step": pieces[2], "details": {"waits": both, "launches": pieces[3]["launches"]}}


def evaluation(kind: str = "pretrain", *, precision: str = "bf16", attention: str = "sdpa", **model: Any) -> Pieces:
    """Validation on two and on six batches of four rows: the difference is `four batches`."""
    import torch

    from fledge.training.validation import ValidationSet, validate
    from tests.support.decoders import VOCAB
    from tests.support.fake_cuda.watch import watched

    data, decoder = _packed(kind), _model(**model)
    with watched() as watch:
        _on_cuda(decoder, precision, attention)
        objective = _objective(kind, data)
        object.__setattr__(objective, "token_bytes", torch.ones(VOCAB, dtype=torch.int64))
        taken = []
        _taken(watch)
        for rows in (8, 24):
            validate(decoder, ValidationSet(data, objective, rows), 4)
            taken.append(_taken(watch))
    less, more = (piece["waits"] for piece in taken)
    difference = {place: count - less.get(place, 0) for place, count in more.items() if count != less.get(place, 0)}
    return {"all of it": taken[0], "four batches": {"waits": difference, "launches": 0}}


def generation(*, precision: str = "bf16", **model: Any) -> Pieces:
    """The pass in which several prompts start, one token of all of them, and one token with everything that sampling has."""
    from fledge.generation.engine import Engine
    from fledge.generation.sampling import SamplingParams
    from tests.support.fake_cuda.watch import watched

    prompts = [[1 + number] * length for number, length in enumerate((5, 19, 40))]
    pieces = {}
    sampled = SamplingParams(
        temperature=0.8, top_k=20, top_p=0.9, repetition_penalty=1.1, logprobs=True, max_new_tokens=8, seed=3
    )
    decoder = _model(**model)
    with watched() as watch:
        _on_cuda(decoder, precision, "sdpa").eval()
        for name, params in (("greedy", SamplingParams(max_new_tokens=8)), ("sampled", sampled)):
            engine = Engine(decoder)
            for prompt in prompts:
                engine.add(prompt, params)
            _taken(watch)
            engine.step()
            pieces[f"{name} start"] = _taken(watch)
            engine.step()
            _taken(watch)
            engine.step()
            pieces[f"{name} token"] = _taken(watch)
            while engine.num_unfinished:
                engine.step()
    return pieces


MOE = {"qk_norm": True, "moe": {"num_experts": 4, "num_experts_per_tok": 2}}
BIASED = {"moe": {"num_experts": 4, "num_experts_per_tok": 2, "num_shared_experts": 1, "load_balancing": "bias"}}

SCENARIOS: dict[str, Callable[[], Pieces]] = {
    "pretrain": lambda: update(closely=True),
    "pretrain, four micro-batches": lambda: update(micro_steps=4),
    "pretrain, muon": lambda: update(optimizer="muon", qk_norm=True),
    "pretrain, adamw8bit": lambda: update(optimizer="adamw8bit"),
    "pretrain, blocked": lambda: update(attention="blocked"),
    "pretrain, varlen": lambda: update(attention="varlen"),
    "pretrain, checkpointing": lambda: update(checkpoint_every=1),
    "pretrain, checkpointing with dropout": lambda: update(checkpoint_every=1, dropout=0.1),
    "sft": lambda: update("sft"),
    "sft, fp16": lambda: update("sft", precision="fp16", closely=True),
    "sft, flex": lambda: update("sft", attention="flex"),
    "dpo, table": lambda: update("preference", closely=True),
    "dpo, reference model": lambda: update("preference", keeps_reference_model=True),
    "mixture": lambda: update(closely=True, **MOE),
    "mixture, fp16": lambda: update(precision="fp16", **MOE),
    "mixture, biases and shared experts": lambda: update(**BIASED),
    "evaluation": evaluation,
    "evaluation, varlen": lambda: evaluation(attention="varlen"),
    "evaluation, dpo": lambda: evaluation("preference"),
    "evaluation, mixture": lambda: evaluation(**MOE),
    "generation": generation,
    "generation, mixture": lambda: generation(**MOE),
}

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:] or list(SCENARIOS))

"""What must be right: attention, experts and updates as on the CPU, resuming, memory, waits, generation, the quickstart."""

import collections
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import fledge
from fledge.autotune.autotune import DTYPES
from fledge.checkpoint.checkpoint import save_checkpoint
from fledge.checkpoint.find import latest_checkpoint
from fledge.checkpoint.state import TrainState
from fledge.data import PackedDataset
from fledge.generation import Engine, SamplingParams
from fledge.model.attention import reference_attention
from fledge.model.cuda_attention import ON_CUDA, attention_metadata, backend, unavailable
from fledge.model.decoder import Decoder
from fledge.model.grouped_mm import grouped_mm
from fledge.recipe import ModelConfig
from fledge.recipe.schema import EMAConfig, OptimizerConfig
from fledge.training.batch_source import StepBatch
from fledge.training.host_copy import PendingOutput
from fledge.training.train_step import OutOfMemory
from fledge.training.trainable import TrainableModel
from gpu.frame import CAPABILITY, CUDA, DEVICE, HALF, SMOKE, WORK, Found, Judge, Skipped, check, sync
from gpu.training import BEST, HALF_WAY, MIXTURE, Run, Way, examples, preset, tiny_data

PRECISIONS = tuple(dict.fromkeys(("fp32", HALF, "fp16")))
CPU = torch.device("cpu")


@check(2)
def environment() -> Found:
    """The card, its driver's libraries and the versions of what is installed."""
    found: Found = {"ok": None, "fledge": fledge.__version__, "torch": torch.__version__, "python": sys.version.split()[0]}
    for package in ("triton", "transformers"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    if CUDA:
        found |= {"gpu": torch.cuda.get_device_name(), "capability": list(CAPABILITY), "cuda": torch.version.cuda}
        found |= {"cudnn": torch.backends.cudnn.version(), "arch_list": torch.cuda.get_arch_list()}
        found |= {"free_total_gib": [round(size / 2**30, 1) for size in torch.cuda.mem_get_info()]}
    return found


def documents_of(rows: int, length: int) -> torch.Tensor:
    """Documents of unequal lengths; every second row ends with padding."""
    cuts = torch.tensor([length // 7, length // 3, length // 2, length - 5])
    numbers = 1 + (torch.arange(length)[:, None] >= cuts).sum(1)
    documents = numbers.repeat(rows, 1)
    documents[1::2, length - length // 7 :] = 0
    return documents


@check(30)
def attention() -> Found:
    """Every backend, forward and backward, against the definition in float32."""
    judge, refused = Judge(), {}
    bounds = {"fp32": 2e-3, "bf16": 2e-2, "fp16": 4e-3}
    for precision in PRECISIONS:
        dtype = DTYPES[precision]
        for length, size in ((512, 64), (320, 64), (129, 96)) if CUDA else ((130, 16),):
            for documents in (None, documents_of(3, length).to(DEVICE)):
                generator = torch.Generator().manual_seed(length)
                shapes = [(3, heads, length, size) for heads in (8, 2, 2)]
                exact = [torch.randn(shape, generator=generator).to(DEVICE, dtype).float().requires_grad_() for shape in shapes]
                upstream = torch.randn(shapes[0], generator=generator).to(DEVICE)
                expected = reference_attention(*exact, documents)
                wanted = [expected, *torch.autograd.grad(expected, exact, upstream)]
                for name in ("sdpa", "blocked", *ON_CUDA):
                    compiled = name == "flex"
                    if reason := unavailable(name, DEVICE.type, dtype, compiled):
                        refused[f"{name} {precision}"] = reason
                        continue
                    function = torch.compile(backend(name), dynamic=False) if compiled else backend(name)
                    tensors = [one.detach().to(dtype).requires_grad_() for one in exact]
                    try:
                        made = function(*tensors, attention_metadata(name, documents, 3, length, DEVICE, dtype))
                        got = [made, *torch.autograd.grad(made, tensors, upstream.to(made.dtype))]
                    except Exception as error:
                        judge.true(f"{name} {precision}", False, f"{type(error).__name__}: {error}"[:300])
                        continue
                    for part, a, b in zip(("out", "dq", "dk", "dv"), got, wanted, strict=True):
                        judge.near(f"{name} {precision} {part}", a, b, bounds[precision])
    return judge.result(refused=refused)


@check(4)
def experts() -> Found:
    """Grouped products against a loop over the groups, empty groups included."""
    judge = Judge()
    bounds = {"fp32": 1e-5, "bf16": 1e-2, "fp16": 2e-3}
    for precision in PRECISIONS:
        for lengths in ([40, 7, 0, 81], [0, 0, 128, 0], [33, 31, 32, 32]):
            generator = torch.Generator().manual_seed(0)
            exact = [
                torch.randn(shape, generator=generator).to(DEVICE, DTYPES[precision]).float().requires_grad_()
                for shape in ((128, 64), (4, 96, 64))
            ]
            upstream = torch.randn(128, 96, generator=generator).to(DEVICE)
            rows, matrices = exact
            expected = torch.cat([part @ matrix.t() for part, matrix in zip(rows.split(lengths), matrices, strict=True)])
            got = [one.detach().to(DTYPES[precision]).requires_grad_() for one in exact]
            ends = torch.tensor(lengths, device=DEVICE).cumsum(0)
            made = grouped_mm(*got, ends, True)
            wanted_all = (expected, *torch.autograd.grad(expected, exact, upstream))
            got_all = (made, *torch.autograd.grad(made, got, upstream.to(made.dtype)))
            for part, a, b in zip(("out", "rows", "matrices"), got_all, wanted_all, strict=True):
                judge.near(f"{precision} {part}", a, b, bounds[precision])
    return judge.result()


def _trained(way: Way, data: PackedDataset, steps: int) -> tuple[list[float], Run]:
    run = Run(way, data, 4, 2)
    losses = [float(run.step().loss) for _ in range(steps)]
    run.close()
    return losses, run


def _update_cases() -> list[tuple[str, PackedDataset, Way, float, float]]:
    """Name, data, way, and the bounds of the losses and of the weights."""
    text, answers, pairs = tiny_data(), tiny_data(supervised=0.5), tiny_data(per=2)
    cases = [
        ("text", text, Way(), 2e-5, 2e-3),
        ("answers, blocked", answers, Way(attention="blocked"), 2e-5, 2e-3),
        ("checkpointing", text, Way(checkpoint_every=1), 2e-5, 2e-3),
        ("mixture", text, Way(model=MIXTURE), 2e-5, 2e-3),
        ("pairs", pairs, Way(), 2e-5, 2e-3),
        ("adamw8bit", text, Way(optimizer="adamw8bit"), 1e-4, 5e-2),
        ("muon", text, Way(optimizer="muon"), 2e-2, 0.2),  # its products are bf16 on a GPU
    ]
    for half in dict.fromkeys((HALF, "fp16")):
        cases.append((f"text {half}", text, Way(precision=half), 1e-2, 6e-2))
        cases.append((f"pairs {half}", pairs, Way(precision=half), 5e-2, 0.1))
    if BEST == "varlen":
        cases.append(("answers varlen", answers, Way(precision=HALF, attention="varlen"), 1e-2, 6e-2))
    return cases[:1] + cases[3:7] if SMOKE else cases


@check(20)
def updates() -> Found:
    """Six updates against six on the CPU in float32: precisions, optimizers, a mixture, preferences, checkpointing."""
    judge, references = Judge(), dict[str, tuple[list[float], torch.Tensor]]()
    for name, data, way, loss_bound, weight_bound in _update_cases():
        plain = replace(way, device=CPU, precision="fp32", attention="blocked", checkpoint_every=0)
        key = f"{id(data)} {plain}"
        start = Run(plain, data, 4, 2)
        before = start.weights()
        start.close()
        if key not in references:
            losses, run = _trained(plain, data, 6 if CUDA else 2)
            references[key] = losses, run.weights()
        wanted, weights = references[key]
        try:
            got, run = _trained(way, data, len(wanted))
        except Exception as error:
            judge.true(name, False, f"{type(error).__name__}: {error}"[:300])
            continue
        judge.value(f"{name} loss", max(abs(a - b) / abs(b) for a, b in zip(got, wanted, strict=True)), loss_bound)
        judge.value(f"{name} weights", float((run.weights() - weights).norm() / (weights - before).norm()), weight_bound)
    return judge.result()


def _resumed(way: Way, number: int) -> dict[str, bool]:
    """Whether a run that is resumed after four of eight updates, and one that is repeated, have the bits of the first."""
    stage: Any = SimpleNamespace(
        optimizer=OptimizerConfig(name=way.optimizer, learning_rate=1e-3, betas=(0.9, 0.95), weight_decay=0.1),  # type: ignore[arg-type]
        ema=EMAConfig(decay=0.9),
    )

    def begin() -> tuple[Run, TrainableModel]:
        run = Run(way, tiny_data(supervised=0.5), 4, 2)
        trainable = TrainableModel(run.model, stage, 8, DEVICE, way.precision)
        run.train_step.optimizers, run.train_step.grad_scaler = trainable.optimizers, trainable.grad_scaler
        return run, trainable

    def train(run: Run, trainable: TrainableModel, until: int) -> None:
        while run.number < until:
            run.step()
            trainable.update_ema(run.number - 1)

    first, trainable = begin()
    train(first, trainable, 4)
    folder = WORK / f"checkpoints-{number}-{os.getpid()}"
    folder.mkdir()
    save_checkpoint(
        folder,
        trainable.snapshot(TrainState(step=4)),
        lambda path, weights: first.model.save_pretrained(path, bos=None, eos=[1], pad=0, weights=weights),
    )
    train(first, trainable, 8)
    found = latest_checkpoint(folder)
    assert found is not None
    second, again = begin()
    again.restore(*found)
    second.number = 4
    train(second, again, 8)
    third, repeated = begin()
    train(third, repeated, 8)
    for run in (first, second, third):
        run.close()
    bits = {
        "resumed": torch.equal(first.weights(), second.weights()),
        "repeated": torch.equal(first.weights(), third.weights()),
    }
    return bits | {"finite": bool(first.weights().isfinite().all())}


@check(12)
def resume() -> Found:
    """Resuming with `deterministic` gives the bits of a run that never stopped; without it, how often it does all the same."""
    judge, bits = Judge(), {}
    ways = [Way(attention="blocked"), Way(attention="sdpa")]
    if CUDA:
        ways += [Way(precision=HALF, attention="sdpa", optimizer="muon"), Way(precision="fp16", optimizer="adamw8bit")]
        ways += [Way(precision=HALF, attention="varlen")] if BEST == "varlen" else []
    for number, way in enumerate([replace(way, deterministic=on) for way in ways for on in (True, False)]):
        way.model = {"dropout": 0.1}
        name = f"{way.precision} {way.attention} {way.optimizer}{', deterministic' if way.deterministic else ''}"
        bits[name] = _resumed(way, number)
        if way.deterministic or not CUDA:
            judge.true(name, all(bits[name].values()), bits[name])
    return judge.result(same_bits=bits)


@check(6)
def out_of_memory() -> Found:
    """A micro-batch that does not fit is recognised, its memory comes back, and a smaller one trains on."""
    if not CUDA:
        raise Skipped("needs a GPU")
    judge, refused = Judge(), list[int]()
    data = PackedDataset(examples(4000, 100, 500, 6400), 512, pad=0, seed=0, split_documents=True)
    way = replace(HALF_WAY, model=preset("26m"))
    run = Run(way, data, 4, 1, vocab=6400)
    run.step()
    sync()
    base = torch.cuda.memory_allocated()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 3 * 2**30) / total)
    rows = 256
    try:
        while rows:
            batch = batch_of(run, rows)
            try:
                run.train_step(batch, 1e-4)
                sync()
                break
            except OutOfMemory:
                refused.append(rows)
            judge.value("MiB left behind", (torch.cuda.memory_allocated() - base) / 2**20, 64)
            rows //= 2
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        run.close()
    judge.true("refused", refused)
    judge.true("some micro-batch fits", rows)
    return judge.result(refused=refused, fits=rows)


def batch_of(run: Run, rows: int) -> StepBatch:
    """A step's batch of one micro-batch of any number of rows."""
    one = run.data.batch(0, rows)
    batch = run.loader.rebuild(0)
    counts = {"normalizer": one.weight, "num_tokens": one.num_tokens, "num_target_tokens": one.num_target_tokens}
    return replace(batch, batches=(one.pinned() if CUDA else one,), num_micro_steps=1, **counts)


def waits_of(act: Any) -> dict[str, int]:
    """Where something waits for the device, by torch's own warnings."""
    if not CUDA:
        act()
        return {}
    sync()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            act()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return dict(
        collections.Counter(f"{Path(one.filename).name}:{one.lineno}" for one in caught if "synchroniz" in str(one.message))
    )


@check(6)
def host_waits() -> Found:
    """An update of two micro-batches waits for nothing, and reading the figures of the one before for its own copy alone."""
    judge, told = Judge(), {}
    text, pairs = tiny_data(), tiny_data(per=2)
    for name, data, way in (
        ("text", text, HALF_WAY), ("closely", text, HALF_WAY), ("adamw8bit", text, replace(HALF_WAY, optimizer="adamw8bit")),
        ("pairs", pairs, HALF_WAY),
    ):  # fmt: skip
        run = Run(way, data, 4, 2)
        for closely in (False, True):
            run.step(closely)
        before = PendingOutput(run.step())
        told[name] = waits_of(lambda run=run, name=name: run.step(name == "closely"))
        judge.true(name, not told[name], told[name])
        told[f"{name}, figures"] = waits_of(before.read)
        judge.true(f"{name}, figures", not told[f"{name}, figures"], told[f"{name}, figures"])  # an event is no such wait
        run.close()
    return judge.result(told=told)


@check(8)
def generation() -> Found:
    """Greedy and drawn answers in float32 equal the CPU's token for token, but for a tie now and then."""
    judge, same = Judge(), {}
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(1, 400, (length,), generator=generator).tolist() for length in range(2, 23 if CUDA else 7)]
    sampled = SamplingParams(temperature=0.8, top_k=50, top_p=0.9, repetition_penalty=1.1, max_new_tokens=16, seed=5)
    for name, changes in (("dense", {}), ("mixture", MIXTURE)):
        model = Decoder(ModelConfig(**{**TINY_LARGE, **changes}), 400)
        model.init_weights(0)
        for way, params in (("greedy", SamplingParams(max_new_tokens=16)), ("drawn", sampled)):
            answers = [
                [list(one.tokens) for one in Engine(model.to(device).eval(), [7], max_batch_size=8).generate(prompts, params)]
                for device in (CPU, DEVICE)
            ]
            count = sum(a == b for a, b in zip(*answers, strict=True))
            same[f"{name} {way}"] = f"{count} of {len(prompts)}"
            judge.true(f"{name} {way}", count >= len(prompts) - 1, same[f"{name} {way}"])
    return judge.result(same=same)


TINY_LARGE = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96,
    "max_position_embeddings": 256, "initializer_range": 0.2,
}  # fmt: skip


@check(70)
def quickstart() -> Found:
    """`fledge quickstart` from nothing to its report, in a process of its own."""
    if SMOKE:
        raise Skipped("takes its minutes; the tests run it on a CPU")
    judge = Judge()
    source = str(Path(fledge.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])}
    command = [
        sys.executable,
        "-m",
        "fledge.cli",
        "quickstart",
        "--minutes",
        "0.4",
        "--output",
        str(WORK / "runs"),
        "--name",
        "q",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    judge.true("exit code", done.returncode == 0, done.stderr[-800:] or done.stdout[-800:])
    judge.true("report", (WORK / "runs" / "q" / "report.html").exists())
    return judge.result(said=done.stdout[-600:])

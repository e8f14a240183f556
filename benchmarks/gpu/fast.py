"""What should be fast: presets at several micro-batches, memory against the formula, generation, against transformers."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from fledge.autotune.autotune import DTYPES
from fledge.data import PackedDataset
from fledge.generation import Engine, SamplingParams
from fledge.model.cost import training_flops_per_token
from fledge.model.decoder import Decoder
from fledge.recipe import ModelConfig
from fledge.training.host_copy import PendingOutput
from gpu.frame import CUDA, DEVICE, HALF, SMOKE, Found, Skipped, check, fresh_start, peak_gib, say, sync
from gpu.training import BEST, HALF_WAY, Run, Way, examples, matmul_flops, preset

VOCAB, LENGTH = (400, 64) if SMOKE else (6400, 512)


def timed(act: Callable[[], Any], seconds: float = 1.2) -> float:
    """Seconds of a call, as the mean of many in a row; the host runs ahead as it does in training."""
    for _ in range(3 if CUDA else 1):
        act()
    sync()
    started, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - started < (seconds if CUDA else 0.05):
        act()
        count += 1
    sync()
    return (time.perf_counter() - started) / count


def rows_data() -> PackedDataset:
    """Rows of documents for the presets."""
    made = examples(*((300, 8, 60) if SMOKE else (9000, 60, 700)), VOCAB)
    return PackedDataset(made, LENGTH, pad=0, seed=0, split_documents=True)


def measured(name: str, way: Way, rows: int, count: int) -> Found:
    """One line of its own for a preset and a way, so that it is there whatever happens next."""
    fresh_start()
    line: Found = {"check": "speed", "preset": name, "rows": rows, "accumulation": count, "attention": way.attention}
    line |= {"precision": way.precision, "compile": way.compile, "optimizer": way.optimizer, "deterministic": way.deterministic}
    run = None
    try:
        run = Run(replace(way, model=preset(name)), rows_data(), 2 if SMOKE else rows, count, vocab=VOCAB, lr=1e-4)
        pending: list[PendingOutput] = []

        def step() -> None:
            """An update, then the figures of the one before, as in the trainer."""
            pending.append(PendingOutput(run.step()))
            if len(pending) > 1:
                pending.pop(0).read()

        seconds = timed(step)
        flops = training_flops_per_token(run.config, VOCAB, LENGTH) * run.tokens
        size = 4 if way.precision == "fp32" else 2
        planned = run.model.cost.peak_bytes(run.tokens // count, size, way.compile, way.optimizer, way.checkpoint_every) / 2**30
        line |= {"ok": None, "ms": seconds * 1e3, "tokens_per_second": run.tokens / seconds}
        line |= {
            "mfu": flops / seconds / matmul_flops(way.precision, run.config),
            "peak_gib": peak_gib(),
            "planned_gib": planned,
        }
    except Exception as error:
        line |= {"ok": False, "error": f"{type(error).__name__}: {error}"[:400]}
    finally:
        if run is not None:
            run.close()
    say(line)
    return line


def summary(lines: list[Found]) -> Found:
    """Whether all were measured."""
    failed = [f"{one['preset']} {one['rows']} {one['attention']}: {one['error']}" for one in lines if one["ok"] is False]
    return {"ok": not failed, "failed": failed}


COMPILED = replace(HALF_WAY, compile=CUDA)


@check(50)
def speed_26m() -> Found:
    """MFU, tokens a second and memory of 26m: plain, compiled, and with other micro-batches."""
    sizes = [(64, 1)] if SMOKE else [(16, 4), (64, 1), (256, 1)]
    return summary([measured("26m", HALF_WAY, 64, 1), *(measured("26m", COMPILED, rows, count) for rows, count in sizes)])


@check(30)
def speed_104m() -> Found:
    """MFU, tokens a second and memory of 104m, compiled."""
    sizes = [(32, 2)] if SMOKE else [(8, 8), (64, 1)]
    return summary([measured("104m", COMPILED, rows, count) for rows, count in sizes])


@check(25)
def speed_moe() -> Found:
    """MFU, tokens a second and memory of 45m-moe, compiled."""
    return summary([measured("45m-moe", COMPILED, 32, 4)])


def llama(name: str) -> Any:
    """A Llama of transformers with the sizes of a preset, on the device."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise Skipped("the package transformers is not installed") from error
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    sizes = {key: value for key, value in preset(name).items() if key in keys}
    config = LlamaConfig(vocab_size=VOCAB, tie_word_embeddings=True, max_position_embeddings=512, **sizes)
    return LlamaForCausalLM(config).to(DEVICE)


def transformers_training(name: str, rows: int) -> float:
    """Tokens a second of training it: compiled, autocast, fused AdamW, whole rows without documents."""
    model = llama(name)
    compiled = torch.compile(model) if CUDA else model
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(VOCAB, (rows, LENGTH), device=DEVICE)

    def step() -> None:
        with torch.autocast(DEVICE.type, DTYPES[HALF], enabled=CUDA):
            loss = compiled(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad(set_to_none=True)

    return rows * LENGTH / timed(step)


@check(35)
def speed_against_transformers() -> Found:
    """Training 104m against the Llama of transformers with its sizes, one after the other."""
    rows = 2 if SMOKE else 32
    theirs = transformers_training("104m", rows)
    ours = measured("104m", COMPILED, rows, 1)
    ratio = ours["tokens_per_second"] / theirs if "tokens_per_second" in ours else None
    return {"ok": ours["ok"] is not False, "tokens_per_second": theirs, "fledge_over_transformers": ratio}


@check(30)
def speed_generation() -> Found:
    """New tokens a second of 26m for 64 prompts and for one; and of transformers with its sizes, where that is installed."""
    many, new, length = (4, 4, 8) if SMOKE else (64, 128, 64)
    model = Decoder(ModelConfig(**preset("26m")), VOCAB)
    model.init_weights(0)
    model.to(DEVICE).eval()
    model.compute_dtype = DTYPES[HALF] if CUDA else torch.float32
    prompts = torch.randint(1, VOCAB, (many, length), generator=torch.Generator().manual_seed(0))
    found: Found = {"ok": None}
    for name, asked in (("many", prompts.tolist()), ("one", prompts[:1].tolist())):
        engine, params = Engine(model), SamplingParams(max_new_tokens=new)
        seconds = timed(lambda engine=engine, asked=asked, params=params: engine.generate(asked, params), 2.0)
        found[f"{name}, tokens_per_second"] = len(asked) * new / seconds
    try:
        theirs = llama("26m").to(model.compute_dtype).eval()
    except Skipped as reason:
        return found | {"transformers": str(reason)}
    inputs, lengths = prompts.to(DEVICE), {"max_new_tokens": new, "min_new_tokens": new}

    def generate() -> None:
        theirs.generate(inputs, attention_mask=torch.ones_like(inputs), do_sample=False, pad_token_id=0, **lengths)

    found["transformers, many, tokens_per_second"] = many * new / timed(generate, 2.0)
    found["ratio"] = found["many, tokens_per_second"] / found["transformers, many, tokens_per_second"]
    return found


@check(20)
def speed_ways() -> Found:
    """26m in plain code: what `deterministic` costs, the other optimizers, and masked attention."""
    ways = [HALF_WAY, replace(HALF_WAY, deterministic=True)]
    ways += [replace(HALF_WAY, optimizer=name) for name in ("muon", "adamw8bit")]
    ways += [replace(HALF_WAY, attention=name) for name in ("sdpa",) if name != BEST]
    lines = [measured("26m", way, 64, 1) for way in ways]
    ratio = lines[1]["ms"] / lines[0]["ms"] if all("ms" in one for one in lines[:2]) else None
    return summary(lines) | {"deterministic_seconds_ratio": ratio}

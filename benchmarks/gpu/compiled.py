"""What compilers and kernels do: the head alone, compiled updates of every attention, the kernels that PyTorch chose, what
autotune decides, and CUDA graphs, which fledge does not use (docs/decisions/030-cuda-graphs.md)."""

import time
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.utils import counters

from fledge.autotune.autotune import DTYPES, autotune
from fledge.autotune.compile import compiled_kernel, reset_compiler, use_compile_cache
from fledge.model.attention import avoid_cudnn_attention, sdpa_mask
from fledge.model.cuda_attention import ON_CUDA, attention_metadata, backend, unavailable
from fledge.model.decoder import Decoder
from fledge.model.linear_cross_entropy import cross_entropy
from fledge.model.segments import segment_starts
from fledge.objective import CausalLMObjective
from fledge.recipe import ModelConfig
from fledge.recipe.schema import RuntimeConfig
from gpu.fast import VOCAB, rows_data, timed
from gpu.frame import CAPABILITY, CUDA, DEVICE, HALF, SMOKE, Found, Judge, check, sync
from gpu.right import PRECISIONS, documents_of
from gpu.training import BEST, HALF_WAY, MIXTURE, Run, Way, preset, tiny_data

KERNELS = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn"}  # torch.nn.attention.SDPBackend, by number
BLOCK_COMPILER = "inductor" if CUDA else "aot_eager"


@check(10)
def head() -> Found:
    """Loss and gradients of the head alone, plain and compiled, whole and of some rows, against written-out logits."""
    judge, bounds = Judge(), {"fp32": 1e-4, "bf16": 1.5e-2, "fp16": 3e-3}
    N, V, D = (9000, 6400, 512) if CUDA else (300, 200, 32)
    for precision in PRECISIONS:
        generator = torch.Generator().manual_seed(N)
        hidden = torch.randn(N, D, generator=generator).to(DEVICE, DTYPES[precision])
        weight = (0.05 * torch.randn(V, D, generator=generator)).to(DEVICE)
        targets = torch.randint(V, (N,), generator=generator).to(DEVICE)
        weights = (torch.rand(N, generator=generator) > 0.3).float().to(DEVICE)
        exact = [hidden.float().requires_grad_(), weight.to(hidden.dtype).float().requires_grad_()]
        losses = F.cross_entropy(exact[0] @ exact[1].t(), targets, reduction="none", label_smoothing=0.1)
        expected = (losses * weights).sum()
        wanted = [expected, *torch.autograd.grad(expected / 7, exact)]
        kernels = {"plain": None, "compiled": compiled_kernel()} if CUDA and precision == HALF else {"plain": None}
        for way, kernel in kernels.items():
            for name, rows in (("found", None), ("known", weights.nonzero()[:, 0])):
                made = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
                loss = cross_entropy(made[0], made[1], targets, weights, 0.1, kernel, rows)
                got = [loss, *torch.autograd.grad(loss / 7, made)]
                for part, a, b in zip(("loss", "by hidden", "by weight"), got, wanted, strict=True):
                    judge.near(f"{way} {precision} rows {name} {part}", a, b, bounds[precision])
    return judge.result()


def _packed_tensors(dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """Documents of packed rows, and queries, keys and values of 8 and 2 heads that require gradients."""
    B, T, d = (64, 512, 64) if CUDA else (2, 130, 16)
    tensors = [torch.randn(B, heads, T, d, device=DEVICE, dtype=dtype).requires_grad_() for heads in (8, 2, 2)]
    return documents_of(B, T).to(DEVICE), tensors


@check(6)
def sdpa_kernels() -> Found:
    """Which kernel `sdpa` gets with and without documents, and what every attention costs forward and backward."""
    avoid_cudnn_attention(DEVICE)
    found: Found = {"ok": None, "kernel": {}, "ms": {}, "peak_mib": {}}
    choose: Any = torch._fused_sdp_choice
    for precision in PRECISIONS:
        dtype = DTYPES[precision]
        documents, tensors = _packed_tensors(dtype)
        q, k, v = (one.detach() for one in tensors)
        repeated = [one.repeat_interleave(4, dim=1) for one in (k, v)]
        for name, call in (
            ("whole rows", lambda q=q, k=k, v=v: choose(q, k, v, None, 0.0, True, enable_gqa=True)),
            ("documents", lambda q=q, kv=repeated, d=documents, t=dtype: choose(q, *kv, sdpa_mask(d, t), 0.0, False)),
        ):
            found["kernel"][f"{precision}, {name}"] = KERNELS.get(int(call()), "another")
    documents, tensors = _packed_tensors(DTYPES[HALF])
    (B, T), starts = documents.shape, segment_starts(documents)
    for name in ("sdpa", "blocked", *ON_CUDA):
        if reason := unavailable(name, DEVICE.type, DTYPES[HALF], False, CAPABILITY):
            found["ms"][name] = reason
            continue
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        metadata = attention_metadata(name, documents, B, T, DEVICE, DTYPES[HALF], starts)

        def both(name: str = name, metadata: Any = metadata) -> None:
            out = backend(name)(*tensors, metadata)
            torch.autograd.grad(out, tensors, torch.ones_like(out))

        found["ms"][name] = 1e3 * timed(both, 0.3)
        if CUDA:
            found["peak_mib"][name] = (torch.cuda.max_memory_allocated() - before) / 2**20
    return found


def _five_losses(way: Way, compiling: bool) -> list[float]:
    run = Run(way, tiny_data(supervised=0.5), 4, 2)
    if compiling:
        use_compile_cache()
        for block in run.model.blocks():
            block.compile(dynamic=False, backend=BLOCK_COMPILER)
    losses = [float(run.step().loss) for _ in range(5 if CUDA else 2)]
    run.close()
    return losses


@check(40)
def compiled_steps() -> Found:
    """Compiled updates of every attention against plain ones: one graph, no breaks, new documents without compiling again."""
    judge, told = Judge(), {}
    names = [
        name for name in ("sdpa", "blocked", *ON_CUDA) if not unavailable(name, DEVICE.type, DTYPES[HALF], True, CAPABILITY)
    ]
    ways = {name: replace(HALF_WAY, attention=name) for name in names}
    ways["checkpointing"] = replace(HALF_WAY, checkpoint_every=1)
    ways["mixture"] = replace(HALF_WAY, model=MIXTURE)
    for name, way in ways.items():
        reset_compiler()
        counters.clear()
        began = time.perf_counter()
        try:
            losses = _five_losses(way, compiling=True)
        except Exception as error:
            judge.true(name, False, f"{type(error).__name__}: {error}"[:300])
            continue
        graphs, breaks = counters["stats"]["unique_graphs"], list(counters["graph_break"])
        told[name] = {"graphs": graphs, "seconds": time.perf_counter() - began}
        judge.true(f"{name} graphs", graphs == 1, graphs)
        judge.true(f"{name} breaks", not breaks, [text[:200] for text in breaks[:2]])
        plain = _five_losses(replace(way, attention=BEST if name == "flex" else way.attention), compiling=False)
        distance = max(abs(a - b) / abs(b) for a, b in zip(losses, plain, strict=True))
        judge.value(f"{name} loss", distance, 1e-2 if CUDA else 1e-4)
    return judge.result(told=told)


@check(45)
def autotune_decision() -> Found:
    """What autotune decides for 26m with everything on auto, its measurements, and how long it takes."""
    rows, data, said = 2 if SMOKE else 64, rows_data(), list[str]()
    model = Decoder(ModelConfig(**preset("26m")), VOCAB)
    model.init_weights(0)
    runtime = RuntimeConfig(device=DEVICE.type, compile="auto" if CUDA else False, autotune="refresh")  # type: ignore[arg-type]
    began = time.perf_counter()
    chosen = autotune(
        runtime, model, data.batch(0, rows), objective=lambda kernel: CausalLMObjective(kernel=kernel), micro_steps=20_000,
        log=said.append,
    )  # fmt: skip
    sync()
    return {"ok": None, "took": time.perf_counter() - began, "decision": chosen.as_dict(), "said": said}


class Marked:
    """An objective that tells CUDA graphs where a micro-batch begins, so that they may use the memory of the one before."""

    def __init__(self, objective: Any) -> None:
        self.objective = objective

    def __call__(self, *arguments: Any) -> Any:
        """The outcome of the objective."""
        torch.compiler.cudagraph_mark_step_begin()
        return self.objective(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objective, name)


def _with_graphs(run: Run) -> None:
    """Let CUDA graphs replay the blocks of a run. Gradients stay allocated: a graph's gradient that became `.grad` itself would
    be overwritten by the next micro-batch."""
    for parameter in run.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    clear = run.model.zero_grad
    run.model.zero_grad = lambda set_to_none=True: clear(set_to_none=False)  # type: ignore[method-assign]
    run.train_step.objective = Marked(run.objective)
    if CUDA:
        use_compile_cache()
        for block in run.model.blocks():
            block._compiled_call_impl = None
            block.compile(dynamic=False, mode="reduce-overhead")


@check(30)
def speed_cuda_graphs() -> Found:
    """An experiment: 26m in small micro-batches, compiled, with CUDA graphs and without: numbers and speed."""
    found: Found = {"ok": None}
    for rows in (2,) if SMOKE else (4, 16):
        seconds, losses = dict[str, float](), dict[str, list[float]]()
        for name in ("compiled", "graphs"):
            reset_compiler()
            way = replace(HALF_WAY, compile=CUDA, model=preset("26m"))
            run = Run(way, rows_data(), rows, 2, vocab=VOCAB, lr=1e-4)
            try:
                if name == "graphs":
                    _with_graphs(run)
                losses[name] = [float(run.step().loss) for _ in range(6 if CUDA else 2)]
                seconds[name] = timed(run.step, 0.6)
            except Exception as error:
                found[f"{rows} rows, {name}"] = f"{type(error).__name__}: {error}"[:400]
            finally:
                run.close()
        if len(seconds) == 2:
            pairs = zip(losses["graphs"], losses["compiled"], strict=True)
            found[f"{rows} rows"] = {"loss_distance": max(abs(a - b) / abs(b) for a, b in pairs), "ms": 1e3 * seconds["graphs"]}
            found[f"{rows} rows"] |= {"speedup": seconds["compiled"] / seconds["graphs"]}
    return found

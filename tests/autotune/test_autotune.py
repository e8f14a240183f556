"""Autotune chooses by readable rules from measurements on this machine and never against the recipe."""

import os
import pickle
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fledge.autotune import precision, search
from fledge.autotune.autotune import autotune, measurements_key
from fledge.autotune.benchmark import (
    ProbeWorkload,
    benchmark,
    matmul_peak,
    physical_cores,
    product_sizes,
    time_attention,
    truncate_batch,
)
from fledge.autotune.compile import compile_with_cache_retry, is_damaged_cache, model_code, use_compile_cache
from fledge.autotune.compute_config import ComputeConfig, check_device, use_float32
from fledge.autotune.search import AutotuneSearch, fastest, is_too_busy
from fledge.data import Batch
from fledge.errors import FledgeError
from fledge.model.cuda_attention import METADATA, BatchLayout
from fledge.model.decoder import Decoder
from fledge.objective import CausalLMObjective
from fledge.quickstart import speed
from fledge.recipe.schema import RuntimeConfig
from fledge.run.cache import BenchmarkCache
from fledge.run.code_cache import code_cache_folder
from fledge.run.text_files import write_json
from tests.support.decoders import make_decoder
from tests.support.packed import dpo, pack, pack_pairs, random_pairs, random_sequences


@pytest.fixture(autouse=True)
def calm_machine_with_own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty benchmark cache and a machine without load."""
    monkeypatch.setenv("FLEDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))


def _batch(rows: int = 3, length: int = 48) -> Batch:
    return pack(random_sequences([20] * 40), length).batch(0, rows)


def _language(kernel: Any) -> CausalLMObjective:
    return CausalLMObjective(0.0, kernel)


def _decide(steps: int = 1, messages: list[str] | None = None, model: Decoder | None = None, **config: Any) -> ComputeConfig:
    log = (lambda text: None) if messages is None else messages.append
    return autotune(
        RuntimeConfig(threads=1, **config), model or make_decoder(), _batch(), _language, micro_steps=steps, log=log
    )


# -- rules --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((6, 1), "fp32"),
        ((7, 0), "fp16"),
        ((7, 5), "fp16"),
        ((8, 0), "bf16"),
        ((8, 9), "bf16"),
        ((9, 0), "bf16"),
        ((12, 0), "bf16"),
    ],
)
def test_gpu_precision_follows_the_units_of_the_gpu(capability: tuple[int, int], expected: str) -> None:
    chosen, reason = precision.gpu_precision(capability)
    assert chosen == expected and f"{capability[0]}.{capability[1]}" in reason


def test_bf16_on_a_gpu_without_bf16_units_is_an_error_and_never_replaced() -> None:
    with pytest.raises(FledgeError, match=r"runtime\.precision: .*no bf16 units.*7\.5(.|\n)*fp16"):
        precision.check_supported(RuntimeConfig(precision="bf16"), "cuda", (7, 5))
    precision.check_supported(RuntimeConfig(precision="bf16"), "cuda", (8, 0))
    precision.check_supported(RuntimeConfig(precision="bf16"), "cpu", None)
    precision.check_supported(RuntimeConfig(precision="fp16"), "cuda", (7, 5))


def test_tf32_without_hardware_support_is_an_error() -> None:
    for device, capability in (("cpu", None), ("cuda", (7, 5))):
        with pytest.raises(FledgeError, match="tf32"):
            precision.check_supported(RuntimeConfig(precision="tf32"), device, capability)
    precision.check_supported(RuntimeConfig(precision="tf32"), "cuda", (8, 0))


@pytest.mark.parametrize(
    ("config", "device", "capability", "words"),
    [
        ({"attention": "flex"}, "cpu", None, "CUDA only"),
        ({"attention": "varlen"}, "cpu", None, "CUDA only"),
        ({"attention": "varlen", "precision": "fp32"}, "cuda", (8, 0), "bf16 and fp16 only"),
        (
            {"attention": "varlen"},
            "cuda",
            (7, 5),
            r"FlashAttention, which exists from compute capability 8\.0 on \(this GPU has 7\.5\)",
        ),
        ({"attention": "flex", "compile": False}, "cuda", (8, 0), "compile is off"),
    ],
)
def test_unsupported_attention_is_an_error(config: dict, device: str, capability: Any, words: str) -> None:
    with pytest.raises(FledgeError, match=words) as caught:
        precision.check_supported(RuntimeConfig(**config), device, capability)
    assert caught.value.where == "runtime.attention" and caught.value.hint


def test_supported_attention_passes_the_check() -> None:
    for config in ({"attention": "varlen"}, {"attention": "flex"}, {"attention": "varlen", "precision": "fp16"}):
        precision.check_supported(RuntimeConfig.model_validate(config), "cuda", (8, 0))
    precision.check_supported(RuntimeConfig(attention="varlen"), "cuda", (8, 6))


def test_bf16_must_be_clearly_faster_or_compiled_with_much_faster_products() -> None:
    assert precision.uncompiled_precision({"fp32": 1.0, "bf16": 0.9}) == "bf16"
    assert precision.uncompiled_precision({"fp32": 1.0, "bf16": 0.95}) == "fp32"
    slow = {"fp32": 1.0, "bf16": 1.4}
    assert precision.compiled_precision(slow, {"fp32": 0.23e12, "bf16": 1.0e12}) == "bf16"
    assert precision.compiled_precision(slow, {"fp32": 1.0e11, "bf16": 1.2e11}) == "fp32"
    assert precision.compiled_precision({"fp32": 1.0, "bf16": 0.5}, {"fp32": 1.0e11, "bf16": 1.2e11}) == "bf16"


def test_fastest_backend_wins_and_a_failed_one_never_does() -> None:
    assert fastest({"blocked": 0.3, "sdpa": 0.2, "flex": "failed: no kernel"}) == "sdpa"
    with pytest.raises(FledgeError, match="no kernel"):
        fastest({"flex": "failed: no kernel"})


def test_machine_is_busy_if_the_load_exceeds_one_and_a_half_times_the_cores() -> None:
    assert [is_too_busy(load, 2) for load in (0.5, 2.0, 3.0, 3.1)] == [False, False, False, True]


def test_float32_products_are_full_float32_unless_tf32_is_requested() -> None:
    use_float32("tf32")
    assert torch.get_float32_matmul_precision() == "high"
    use_float32("fp32")
    assert torch.get_float32_matmul_precision() == "highest"


def test_physical_cores_are_counted_once_however_many_hyperthreads_share_them(tmp_path: Path) -> None:
    mine = sorted(os.sched_getaffinity(0))
    for number in mine:
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text("0-99\n")
    assert physical_cores(tmp_path) == 1
    assert physical_cores(tmp_path / "nothing") == len(mine)


# -- workload -----------------------------------------------------------------------------------------------------------


def test_truncated_batch_holds_the_first_rows_and_their_sequences() -> None:
    batch = _batch(4)
    truncated = truncate_batch(batch, 100)
    assert truncated.input_ids.shape == (2, 48) and torch.equal(truncated.input_ids, batch.input_ids[:2])
    inside = truncated.sequence_ids[truncated.documents > 0]
    assert (
        int(inside.max()) == truncated.num_sequences - 1
        and (truncated.sequence_ids[truncated.documents == 0] == truncated.num_sequences).all()
    )
    assert truncate_batch(batch, 10_000) is batch and truncate_batch(batch, 1).input_ids.shape[0] == 1


def test_truncated_batch_of_pairs_gives_the_loss_of_these_pairs() -> None:
    data = pack_pairs(random_pairs(12))
    batch, model = data.batch(0, len(data)), make_decoder()
    truncated = truncate_batch(batch, 2 * 48)
    objective = dpo(torch.zeros(12, 2))
    truncated_output = objective(model, truncated)
    assert truncated.num_sequences == 2 * len(truncated.examples) < batch.num_sequences
    blanked = replace(batch, loss_weights=batch.loss_weights.clone())
    blanked.loss_weights[2:] = 0
    for name in ("logps/chosen", "logps/rejected"):
        torch.testing.assert_close(truncated_output.metrics[name].total, objective(model, blanked).metrics[name].total)


def test_benchmark_step_uses_one_layer_and_restores_the_model() -> None:
    model, layers = make_decoder(), 2
    with pytest.raises(RuntimeError), model.only_first_block():
        assert len(model.layers) == 1
        raise RuntimeError
    assert len(model.layers) == layers
    work = ProbeWorkload(model, _batch(), _language, "cpu")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    work.step(torch.float32, "blocked")()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert 1 < work.full_step_seconds(1.0) < layers + 1e-9


def test_benchmark_alternates_calls_after_a_warm_up_and_respects_its_budget() -> None:
    calls: list[str] = []
    runs = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    least = benchmark(runs, "cpu", repeats=2)
    assert calls == ["a", "b"] * 3 and all(0 <= value < 1 for value in least.values())
    calls.clear()
    benchmark(runs, "cpu", repeats=50, budget=0.0)
    assert calls == ["a", "b"] * 2  # one warm-up round, one timed round


def test_matmul_peak_is_plausible() -> None:
    peak = matmul_peak("cpu", torch.float32, [(256, 128, 128)], seconds=0.05)
    assert 1e7 < peak < 1e14
    assert all(len(size) == 3 for size in product_sizes(make_decoder().config, "cpu"))


def test_attention_that_fails_or_gives_different_results_is_excluded_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from fledge.model.attention import BACKENDS

    def wrong(q: torch.Tensor, *rest: Any) -> torch.Tensor:
        return 2 * BACKENDS["sdpa"](q, *rest)

    def broken(*anything: Any) -> torch.Tensor:
        raise RuntimeError("no kernel here\nmore")

    monkeypatch.setitem(BACKENDS, "wrong", wrong)
    monkeypatch.setitem(BACKENDS, "broken", broken)
    work = ProbeWorkload(make_decoder(), _batch(), _language, "cpu")
    results = time_attention(work, torch.float32, ["broken", "blocked", "sdpa", "wrong"], compiling=False)
    assert results["broken"] == "failed: no kernel here" and results["wrong"] == "results differ from blocked"
    assert all(isinstance(results[name], float) for name in ("blocked", "sdpa"))
    monkeypatch.setitem(BACKENDS, "wrong", lambda q, *rest: float("nan") * BACKENDS["sdpa"](q, *rest))
    alone = time_attention(work, torch.float32, ["wrong", "sdpa", "blocked"], compiling=False)
    assert alone["wrong"] == "results are not finite", "also where it is the first, by which the others are judged"
    assert isinstance(alone["sdpa"], float) and isinstance(alone["blocked"], float)


def test_what_is_made_once_for_all_layers_counts_by_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def slow_metadata(batch: BatchLayout) -> torch.Tensor | None:
        made.append((batch.B, batch.T))
        time.sleep(0.05)
        return batch.documents

    monkeypatch.setitem(METADATA, "blocked", slow_metadata)
    seconds = {}
    for layers in (1, 10):
        work = ProbeWorkload(make_decoder(num_hidden_layers=layers), _batch(), _language, "cpu")
        seconds[layers] = time_attention(work, torch.float32, ["blocked"], compiling=False)["blocked"]
    assert float(seconds[1]) > 0.05 and 0.005 < float(seconds[10]) < 0.04 and made


# -- decisions ----------------------------------------------------------------------------------------------------------


def test_short_stage_is_not_compiled_and_the_reason_is_recorded(tmp_path: Path) -> None:
    model = make_decoder()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    decision = _decide(model=model)
    assert not decision.compile and "too short" in str(decision.measurements["compile_reason"])
    assert decision.precision in ("fp32", "bf16") and decision.attention in ("blocked", "sdpa", "segments")
    assert decision.matmul_peak and decision.matmul_peak > 1e6
    for name in ("fp32_seconds", "bf16_seconds", "attention_blocked_plain", "attention_sdpa_plain"):
        assert 0 < float(decision.measurements[name]) < 60
    assert model.attention == decision.attention
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    write_json(tmp_path / "compute.json", decision.as_dict())
    assert ComputeConfig.read(tmp_path / "compute.json") == decision


def test_a_short_stage_may_compile_where_a_stage_of_the_same_shapes_has_compiled() -> None:
    """A figure of another objective counts, so that DPO after SFT uses its code; a truly short stage stays uncompiled."""
    config, tried = RuntimeConfig(threads=1), {}
    for objective in (_language, lambda kernel: dpo(None)):
        workload = ProbeWorkload(make_decoder(), _batch(), objective, "cpu")
        cache = BenchmarkCache(measurements_key(workload, config))
        seconds = 20 / workload.full_step_seconds(1.0)  # of the probe, where 20 s of training remain
        for length in (0.1, 1):
            search_here = AutotuneSearch(config, workload, cache, 1, lambda text: None)
            tried[workload.objective_name, length] = search_here._should_try_compiling(length * seconds)
        cache.get_or_measure(search.COMPILE_FIGURE, lambda: 25.0)
        cache.save()
    assert list(tried.values()) == [False, False, False, True], tried


def test_second_run_reuses_the_measurements_and_chooses_alike() -> None:
    first, messages = _decide(), list[str]()
    second = _decide(messages=messages)
    assert any("as measured before on this machine" in line for line in messages)
    evidence = [{k: v for k, v in d.measurements.items() if k not in ("measured", "load")} for d in (first, second)]
    assert evidence[0] == evidence[1] and replace(first, measurements={}) == replace(second, measurements={})
    assert first.measurements["measured"] == "in this run" and "before" in str(second.measurements["measured"])
    again = _decide(autotune="refresh")
    assert again.measurements["measured"] == "in this run"


def test_long_documents_do_not_decide_for_short_ones_of_the_same_shapes() -> None:
    """`segments` costs Σ n² over the documents, so that its figures are of one length of document, by powers of two."""
    config, chosen = RuntimeConfig(threads=1), list[ComputeConfig]()
    for lengths, measured in (([48] * 3, "in this run"), ([4] * 60, "partly before"), ([5] * 60, "before")):
        batch = pack(random_sequences([n + 1 for n in lengths]), 48).batch(0, 3)
        decision = autotune(config, make_decoder(), batch, _language, micro_steps=1)
        assert str(decision.measurements["measured"]).startswith(measured), lengths
        chosen.append(decision)
    names = [name for name in chosen[0].measurements if name.startswith("attention_segments")]
    assert names and all(chosen[0].measurements[name] != chosen[1].measurements[name] for name in names)
    assert all(chosen[1].measurements[name] == chosen[2].measurements[name] for name in names)


def test_the_speed_of_the_quickstart_is_measured_on_documents_of_its_length() -> None:
    workload = ProbeWorkload(make_decoder(), speed._random_batch(), _language, "cpu")
    cache = BenchmarkCache(measurements_key(workload, RuntimeConfig()))
    assert AutotuneSearch(RuntimeConfig(), workload, cache, 1, lambda text: None)._context == "documents of about 64"
    starts = workload.batch.position_ids == 0
    changes = workload.batch.documents.diff(dim=1) != 0
    assert starts[:, 0].all() and torch.equal(starts[:, 1:], changes)


def test_measurements_of_a_busy_machine_serve_until_it_is_less_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (999.0, 0.0, 0.0))
    messages: list[str] = []
    assert _decide(messages=messages).measurements["load"] == 999.0 and any("serve until" in line for line in messages)
    assert "before on this machine" in str(_decide().measurements["measured"])
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 0.0, 0.0))
    assert _decide().measurements["measured"] == "in this run"
    assert "before on this machine" in str(_decide().measurements["measured"])


def test_what_was_measured_before_an_interruption_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 0.0, 0.0))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(AutotuneSearch, "_measure_matmul_peak", interrupt)
        _decide()
    assert "partly before" in str(_decide().measurements["measured"])


def test_settings_of_the_recipe_are_followed() -> None:
    decision = _decide(precision="fp32", attention="sdpa", compile=False)
    assert (decision.precision, decision.attention, decision.compile) == ("fp32", "sdpa", False)
    assert {decision.measurements[f"{name}_reason"] for name in ("precision", "attention", "compile", "threads")} == {
        search.SET_IN_RECIPE
    }


def test_fp16_on_a_cpu_works_with_a_warning() -> None:
    messages: list[str] = []
    decision = _decide(precision="fp16", compile=False, attention="sdpa", messages=messages)
    assert decision.precision == "fp16" and any("slow on a CPU" in line for line in messages)
    model = decision.apply(make_decoder())
    assert model(torch.zeros(1, 4, dtype=torch.long)).dtype == torch.float16


def test_failing_compiler_is_reported_and_is_an_error_only_if_compile_was_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MIN_SECONDS_TO_COMPILE", 0.0)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(code_cache_folder() / model_code()))

    def broken(*anything: Any, **named: Any) -> Any:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(torch.nn.Module, "compile", broken)
    messages: list[str] = []
    decision = _decide(messages=messages, attention="blocked", precision="fp32")
    assert not decision.compile and any("no C++ compiler" in line for line in messages)
    with pytest.raises(FledgeError, match="no C\\+\\+ compiler"):
        _decide(compile=True, attention="blocked", precision="fp32")


def test_compile_cache_is_in_the_fledge_cache_unless_the_user_set_a_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    assert use_compile_cache() == str(code_cache_folder() / model_code())
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    assert use_compile_cache() == "/elsewhere"


def test_a_cache_that_others_can_write_is_refused_before_compiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "shared"))
    for start in (use_compile_cache, lambda: check_device(RuntimeConfig())):
        with pytest.raises(FledgeError, match="would be executed, and other users can write into it"):
            start()
    check_device(RuntimeConfig(compile=False))


def test_incomplete_compile_cache_of_a_killed_process_is_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    half = Path(use_compile_cache()) / "half.so"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"\x7fELF")
    messages: list[str] = []

    def step() -> None:
        if half.exists():
            raise ImportError("file too short")

    compile_with_cache_retry(step, messages.append)
    assert not half.exists() and "compiled again" in messages[0]


class Wrapped(RuntimeError):
    """As torch wraps the error of a backend."""

    def __init__(self, inner: Exception) -> None:
        super().__init__(f"backend='inductor' raised: {inner}")
        self.inner_exception = inner


FAILING_BACKENDS = [
    RuntimeError("PassManager::run failed"),
    RuntimeError("out of resource: shared memory, Required: 114688, Hardware limit: 65536"),
    Wrapped(RuntimeError("NoValidChoicesError: No choices to select")),
    ModuleNotFoundError("No module named 'triton'"),
    FileNotFoundError(2, "No such file or directory", "g++"),
    torch.OutOfMemoryError("CUDA out of memory"),
    FledgeError("refused"),
]


@pytest.mark.parametrize("error", FAILING_BACKENDS, ids=lambda error: str(error)[:30])
def test_a_failing_backend_is_not_taken_for_a_damaged_cache(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    kept = Path(use_compile_cache()) / "of_another_process.so"
    kept.parent.mkdir(parents=True)
    kept.touch()
    calls, messages = [], list[str]()

    def step() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)) as raised:
        compile_with_cache_retry(step, messages.append)
    assert raised.value is error and len(calls) == 1 and not messages and kept.exists()


def test_every_kind_of_unreadable_cache_is_recognised() -> None:
    folder = code_cache_folder()
    broken = folder / "x" / "half.py"
    unreadable: list[Exception] = [
        EOFError("Ran out of input"),
        pickle.UnpicklingError("pickle data was truncated"),
        SyntaxError("unexpected EOF while parsing", (str(broken), 3, 1, "def call(", 3, 1)),
        OSError(f"{folder}/x.so: invalid ELF header"),
        RuntimeError("Triton Error [CUDA]: device kernel image is invalid"),
        ImportError(f"{folder}/x.so: undefined symbol: kernel"),
    ]
    for error in unreadable:
        assert is_damaged_cache(error, folder) and is_damaged_cache(Wrapped(error), folder)
    for error in (
        SyntaxError("bad", ("/elsewhere/model.py", 3, 1, "", 3, 1)),
        OSError("/elsewhere/x"),
        ImportError("no triton"),
    ):
        assert not is_damaged_cache(error, folder)


def test_compile_cache_directory_of_the_user_is_left_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    (tmp_path / "half.so").touch()

    def step() -> None:
        raise ImportError("file too short")

    with pytest.raises(ImportError):
        compile_with_cache_retry(step)
    assert (tmp_path / "half.so").exists()


def test_missing_cuda_device_is_an_error() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(FledgeError, match="no CUDA device"):
        _decide(device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_autotune_chooses_a_gpu_with_a_correct_attention_backend() -> None:
    decision = _decide()
    assert decision.device == "cuda"
    assert decision.precision == precision.gpu_precision(torch.cuda.get_device_capability())[0]
    assert decision.attention in ("sdpa", "blocked", "flex", "varlen")

"""The choices of autotune in order; each is measured with the choices made before."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import torch

from fledge.autotune import precision as precision_rules
from fledge.autotune.benchmark import (
    Log,
    ProbeWorkload,
    benchmark,
    matmul_peak,
    physical_cores,
    product_sizes,
    time_attention,
    time_compiled,
)
from fledge.autotune.compile import compile_blocks, compile_with_cache_retry, compiled_kernel, uncompile
from fledge.autotune.compute_config import ComputeConfig, capability, use_float32
from fledge.autotune.determinism import DETERMINISTIC_ATTENTION
from fledge.autotune.gpu_paths import attention_candidates
from fledge.autotune.precision import DTYPES
from fledge.errors import FledgeError, first_line
from fledge.model.cuda_attention import unavailable
from fledge.recipe.schema import RuntimeConfig
from fledge.run.cache import BenchmarkCache
from fledge.run.environment import cores, local_world_size

MIN_SECONDS_TO_COMPILE = 60.0  # training below this is too short to try compiling (about 20 s on two cores)
MIN_SECONDS_WITH_KEPT_CODE = 10.0  # the same where another stage compiled code of these shapes, which loads in a second or two
COMPILE_FIGURE = "seconds of the first compilation"
MAX_COMPILED_RATIO = 0.97  # compiled code must take at most this fraction of the uncompiled time
SET_IN_RECIPE = "set in the recipe"


def is_too_busy(load: float, available: int) -> bool:
    """Whether the load of the machine would distort measurements. `available`: number of cores."""
    return load > 1.5 * available


def machine_load() -> float:
    """The load of the machine over the last minute; 0 where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def fastest(results: dict[str, float | str]) -> str:
    """The attention backend with the least seconds; backends with a reason instead of seconds are excluded.

    Raises FledgeError if none is left.
    """
    seconds = {name: value for name, value in results.items() if not isinstance(value, str)}
    if not seconds:
        reasons = "; ".join(f"{name} {value}" for name, value in results.items())
        raise FledgeError(f"no attention backend works here: {reasons}", where="runtime.attention")
    return min(seconds, key=lambda name: seconds[name])


class AutotuneSearch:
    """The search for one compute configuration.

    Two candidates are prepared, uncompiled and compiled code, each with its best precision and attention; then they are
    compared.
    """

    def __init__(
        self, config: RuntimeConfig, workload: ProbeWorkload, cache: BenchmarkCache, micro_steps: int, log: Log
    ) -> None:
        self.config, self.workload, self.cache, self.micro_steps, self.log = config, workload, cache, micro_steps, log
        self.truncated = workload.truncated()
        self.measurements: dict[str, float | str] = {"workload": self.truncated.describe()}
        self.threads = 0

    def decision(self) -> ComputeConfig:
        """Make all choices in order and return the configuration. What was measured before an interruption is kept."""
        load = machine_load()
        try:
            self.threads = self._threads()
            torch.set_num_threads(self.threads)
            self.workload.model.set_attention_backend(self._candidates(torch.float32, compiling=False)[0])
            chosen = self._choose()
            self._measure_matmul_peak(chosen.precision)
        except BaseException:
            self.cache.save()
            raise
        self._store_measurements(load)
        return chosen

    def _store_measurements(self, load: float) -> None:
        cache = self.cache
        if cache.new and cache.recalled:
            self.measurements["measured"] = f"partly before on this machine ({cache.measured_at})"
        elif cache.new:
            self.measurements["measured"] = "in this run"
        else:
            self.measurements["measured"] = f"before on this machine ({cache.measured_at})"
            self.log(f"as measured {self.measurements['measured']}; --runtime.autotune refresh measures again")
        if cache.new:
            self.measurements["load"] = round(load, 2)
            if cache.is_busy:
                self.log(f"note: the machine is busy (load {load:.1f}): its measurements serve until it is less so")
            cache.save()

    # -- threads ----------------------------------------------------------------------------------------------------

    def _threads(self) -> int:
        """The number of threads: all cores; with hyperthreads, all logical or all physical cores, as measured."""
        logical, physical = cores(), physical_cores()
        if local_world_size() > 1 and not self.config.threads:
            self.measurements["threads_reason"] = (
                f"its share of {logical} cores: {local_world_size()} processes train on this machine"
            )
            return max(1, logical // local_world_size())
        if self.config.threads:
            self.measurements["threads_reason"] = SET_IN_RECIPE
            return self.config.threads
        if physical == logical or self.workload.device == "cuda":
            self.measurements["threads_reason"] = "one per core"
            return logical

        def step_with_threads(count: int) -> Callable[[], None]:
            step = self.truncated.step(torch.float32, self.workload.model.attention)

            def run() -> None:
                torch.set_num_threads(count)
                step()

            return run

        def measure() -> dict[str, float]:
            return benchmark({str(count): step_with_threads(count) for count in (logical, physical)}, self.workload.device)

        seconds = self.cache.get_or_measure(f"fp32 by threads {logical} and {physical}", measure)
        self.measurements.update({f"threads_{count}_seconds": round(elapsed, 4) for count, elapsed in seconds.items()})
        self.measurements["threads_reason"] = f"measured: {physical} physical cores of {logical}"
        return logical if seconds[str(logical)] < seconds[str(physical)] else physical

    # -- uncompiled or compiled -------------------------------------------------------------------------------------

    def _choose(self) -> ComputeConfig:
        def configure(precision: str, attention: str, compile: bool) -> ComputeConfig:
            return ComputeConfig(
                device=self.workload.device, precision=precision, attention=attention, compile=compile,
                threads=self.threads, deterministic=self.config.deterministic, measurements=self.measurements,
            )  # fmt: skip

        seconds = self._uncompiled_seconds()
        try_compiling = self._should_try_compiling(min(seconds.values()))
        uncompiled, compiled = self._precisions(seconds, try_compiling)
        if try_compiling:
            try:
                attention = self._attention(compiled, compiling=True)
                chosen = configure(compiled, attention, True)
                if self._must_compile:
                    self._compile(chosen)
                    return self._with_eager_attention(chosen)
                other = configure(uncompiled, self._attention(uncompiled, compiling=False), False)
                if self._is_compiling_faster(chosen, other):
                    return self._with_eager_attention(chosen)
                uncompile(self.workload.model)
                return other
            except Exception as error:  # no compiler, or a compiler that fails: uncompiled code always works
                uncompile(self.workload.model)
                failure = f"compiling failed: {first_line(error)}"
                if self._must_compile:
                    hint = "set runtime.compile to auto or false, and runtime.attention to auto"
                    raise FledgeError(failure, where="runtime.compile", hint=hint) from error
                self.measurements["compile_reason"] = failure
                self.log(f"warning: {failure}; continuing with uncompiled code")
        return configure(uncompiled, self._attention(uncompiled, compiling=False), False)

    @property
    def _must_compile(self) -> bool:
        return self.config.compile is True or self.config.attention == "flex"

    def _should_try_compiling(self, seconds: float) -> bool:
        """Whether compiling is requested, or training is long enough; `seconds`: of the truncated step, uncompiled."""
        reason = self.workload.model.not_compiled_because
        if reason is not None and self._must_compile:
            hint = "set runtime.compile to auto or false, and runtime.attention to auto"
            raise FledgeError(f"this model is not compiled: {reason}", where="runtime.compile", hint=hint)
        if self._must_compile or self.config.compile is False:
            self.measurements["compile_reason"] = SET_IN_RECIPE
            return self._must_compile
        if reason is not None:
            self.measurements["compile_reason"] = reason
            return False
        scale = self.workload.batch.input_ids.numel() / self.truncated.batch.input_ids.numel()
        remaining = self.workload.full_step_seconds(seconds * scale) * self.micro_steps
        enough = remaining >= (MIN_SECONDS_WITH_KEPT_CODE if COMPILE_FIGURE in self.cache else MIN_SECONDS_TO_COMPILE)
        if not enough:
            self.measurements["compile_reason"] = f"about {remaining:.0f} s of training is too short for compiling to save time"
        return enough

    def _is_compiling_faster(self, compiled: ComputeConfig, uncompiled: ComputeConfig) -> bool:
        """Compile and compare; a cached comparison is not repeated, only the faster compiled code is compiled."""
        sides = f"{_describe(uncompiled)} against {_describe(compiled)}"
        key = f"{sides}, whole micro-batch, {self._context}, {self.workload.objective_name}"

        def measure() -> dict[str, float]:
            self.log("compiling the model's block to see whether it is faster …")
            compiled_step = self._compile(compiled)
            uncompiled_step = self.workload.step(DTYPES[uncompiled.precision], uncompiled.attention)
            return time_compiled(uncompiled_step, compiled_step, self.workload.device)

        best = self.cache.get_or_measure(key, measure)
        self.measurements.update({f"{name}_seconds": round(seconds, 4) for name, seconds in best.items()})
        self.measurements["compile_reason"] = "measured on one layer and the head"
        is_faster = best["compiled"] < MAX_COMPILED_RATIO * best["eager"]
        if is_faster and key in self.cache.recalled:
            self._compile(compiled)
        return is_faster

    def _compile(self, config: ComputeConfig) -> Callable[[], None]:
        """Compile a training step on the shapes of training; returns the step."""
        step = self.workload.step(DTYPES[config.precision], config.attention, compiled_kernel())
        compile_blocks(self.workload.model)
        use_float32(config.precision)
        start_time = time.perf_counter()
        compile_with_cache_retry(step, self.log)
        seconds = round(time.perf_counter() - start_time, 1)
        self.measurements["compile_seconds"] = seconds
        self.cache.get_or_measure(COMPILE_FIGURE, lambda: seconds)
        return step

    # -- precision --------------------------------------------------------------------------------------------------

    def _uncompiled_seconds(self) -> dict[str, float]:
        """Seconds of the truncated step, uncompiled, in each precision that may be chosen."""
        config, device = self.config, self.workload.device
        units = capability(device)
        if config.precision != "auto":
            self.measurements["precision_reason"], names = SET_IN_RECIPE, [config.precision]
            if config.precision == "fp16" and device == "cpu":
                self.log("warning: runtime.precision fp16 is slow on a CPU, which has no fp16 units")
        elif units is not None:
            precision, self.measurements["precision_reason"] = precision_rules.gpu_precision(units)
            names = [precision]
        else:
            self.measurements["precision_reason"], names = "measured on a piece of a micro-batch", ["fp32", "bf16"]
        if config.compile != "auto" and len(names) == 1:
            return dict.fromkeys(names, 0.0)  # no choice depends on the seconds
        use_float32(names[0])
        attention = self.workload.model.attention
        runs = {name: self.truncated.step(DTYPES[name], attention) for name in names}
        key = f"plain {' '.join(names)}, attention {attention}, {self.threads} threads, {self.workload.objective_name}"
        seconds = self.cache.get_or_measure(key, lambda: benchmark(runs, device))
        self.measurements.update({f"{name}_seconds": round(elapsed, 4) for name, elapsed in seconds.items()})
        return seconds

    def _precisions(self, seconds: dict[str, float], try_compiling: bool) -> tuple[str, str]:
        """The precisions for uncompiled and for compiled code."""
        if len(seconds) == 1:
            only = next(iter(seconds))
            return only, only
        uncompiled = precision_rules.uncompiled_precision(seconds)
        if not try_compiling:
            return uncompiled, uncompiled
        peaks = {name: self._measure_matmul_peak(name) for name in ("fp32", "bf16")}
        self.measurements.update({f"{name}_peak_flops": round(peak) for name, peak in peaks.items()})
        return uncompiled, precision_rules.compiled_precision(seconds, peaks)

    def _measure_matmul_peak(self, precision: str) -> float:
        """FLOP/s of matrix products in this precision, measured and recorded for MFU."""
        device, config = self.workload.device, self.workload.model.config
        use_float32(precision)

        def measure() -> float:
            return matmul_peak(device, DTYPES[precision], product_sizes(config, device))

        peak = self.cache.get_or_measure(f"matmul peak {precision}, {self.threads} threads", measure)
        self.measurements["matmul_peak_flops"] = round(peak)
        return peak

    # -- attention --------------------------------------------------------------------------------------------------

    @cached_property
    def _context(self) -> str:
        """The length of document that a token of the micro-batch is in on average, Σ n² / Σ n over the documents, as a power
        of two, for the names of figures of attention: it costs Σ n² where scores are computed inside documents alone."""
        rows = self.workload.batch.documents.cpu()
        lengths = torch.cat([row.unique_consecutive(return_counts=True)[1] for row in rows]).double()
        return f"documents of about {2 ** round(math.log2(float(lengths.square().sum() / lengths.sum())))}"

    def _candidates(self, dtype: torch.dtype, compiling: bool) -> list[str]:
        """Attention backends that the device can train with and the model has."""
        names = attention_candidates(self.workload.device, dtype, compiling, capability(self.workload.device))
        if self.config.deterministic and self.workload.device == "cuda":
            names = [name for name in names if name in DETERMINISTIC_ATTENTION]
        return [name for name in names if name in self.workload.model.attention_backends]

    def _with_eager_attention(self, compiled: ComputeConfig) -> ComputeConfig:
        """A compiled configuration with the attention of the passes that do not use compiled code, where it is another one."""
        asked, device, dtype = self.config.attention, self.workload.device, DTYPES[compiled.precision]
        if asked != "auto" and unavailable(asked, device, dtype, False, capability(device)) is None:
            return compiled
        eager = self._fastest_attention(compiled.precision, compiling=False)
        return compiled if eager == compiled.attention else replace(compiled, eager_attention=eager)

    def _attention(self, precision: str, compiling: bool) -> str:
        """The attention backend of the recipe, or the fastest one in this precision; uncompiled and compiled code differ in
        this."""
        if self.config.attention != "auto":
            self.measurements["attention_reason"] = SET_IN_RECIPE
            return self.config.attention
        self.measurements["attention_reason"] = "measured forward and backward on the shapes of a micro-batch"
        return self._fastest_attention(precision, compiling)

    def _fastest_attention(self, precision: str, compiling: bool) -> str:
        dtype = DTYPES[precision]
        names = self._candidates(dtype, compiling)
        mode = "compiled" if compiling else "plain"
        key = f"attention {' '.join(names)} in {precision}, {mode}, {self._context}, {self.threads} threads"
        if compiling:
            self.log("compiling attention to see which is fastest …")
        results = self.cache.get_or_measure(key, lambda: time_attention(self.truncated, dtype, names, compiling, self.log))
        self.measurements.update({f"attention_{name}_{mode}": value for name, value in results.items()})
        return fastest(results)


def _describe(config: ComputeConfig) -> str:
    mode = "compiled" if config.compile else "plain"
    return f"{mode} {config.precision} with attention {config.attention}, {config.threads} threads"

"""The choices of a decision, in order, each measured with those made before it."""

import os
import time
from collections.abc import Callable

import torch

from fledge.autotune import precision as rules
from fledge.autotune.benchmark import (
    ProbeWorkload,
    Say,
    attention_candidates,
    benchmark,
    first_line,
    matmul_peak,
    physical_cores,
    product_sizes,
    time_attention,
    time_compiled,
)
from fledge.autotune.compile import compile_blocks, compile_with_cache_retry, compiled_kernel, uncompile
from fledge.autotune.compute_config import ComputeConfig, capability, use_float32
from fledge.autotune.precision import DTYPES
from fledge.errors import FledgeError
from fledge.recipe.schema import RuntimeConfig
from fledge.run.cache import BenchmarkCache
from fledge.run.environment import cores, local_world_size

MIN_SECONDS_TO_COMPILE = 60.0  # seconds of training below which compiling (some 20 s on two cores) is not even tried
MAX_COMPILED_RATIO = 0.97  # compiled code must take at most this share of the plain code's time
THE_RECIPE = "as the recipe says"


def too_busy(load: float, available: int) -> bool:
    """Whether so much else runs that what is measured now would mislead later runs."""
    return load > 1.5 * available


def fastest(found: dict[str, float | str]) -> str:
    """The name with the least seconds; names with words instead of seconds were ruled out."""
    seconds = {name: value for name, value in found.items() if not isinstance(value, str)}
    if not seconds:
        told = "; ".join(f"{name} {value}" for name, value in found.items())
        raise FledgeError(f"no attention backend works here: {told}", where="runtime.attention")
    return min(seconds, key=lambda name: seconds[name])


class AutotuneSearch:
    """One decision in the making.

    Two ways to compute are prepared, plain code and compiled code, each with the precision and the attention that are
    best for it; then they are compared.
    """

    def __init__(
        self, config: RuntimeConfig, work: ProbeWorkload, measured: BenchmarkCache, micro_steps: int, say: Say
    ) -> None:
        self.config, self.work, self.measured, self.micro_steps, self.say = config, work, measured, micro_steps, say
        self.part = work.part()
        self.evidence: dict[str, float | str] = {"probe": self.part.describe()}
        self.threads = 0

    def decision(self) -> ComputeConfig:
        """All choices in order."""
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        self.threads = self._threads()
        torch.set_num_threads(self.threads)
        self.work.model.set_attention_backend(self._candidates(torch.float32, compiling=False)[0])
        chosen = self._choose()
        self._peak(chosen.precision)
        self._keep(load)
        return chosen

    def _keep(self, load: float) -> None:
        measured = self.measured
        if measured.new and measured.recalled:
            self.evidence["measured"] = f"partly before on this machine ({measured.measured_at})"
        elif measured.new:
            self.evidence["measured"] = "in this run"
        else:
            self.evidence["measured"] = f"before on this machine ({measured.measured_at})"
            self.say(f"as measured {self.evidence['measured']}; --runtime.autotune again measures anew")
        if measured.new:
            self.evidence["load"] = round(load, 2)
            if self.work.device == "cpu" and too_busy(load, cores()):
                self.say(f"note: the machine is busy (load {load:.1f}): what was measured is not kept for later runs")
            else:
                measured.save()

    # -- threads ----------------------------------------------------------------------------------------------------

    def _threads(self) -> int:
        """All cores; where cores come in pairs that share one (hyperthreads), all or half of them, as measured."""
        logical, physical = cores(), physical_cores()
        if local_world_size() > 1 and not self.config.threads:
            self.evidence["threads_reason"] = (
                f"its share of {logical} cores: {local_world_size()} processes train on this machine"
            )
            return max(1, logical // local_world_size())
        if self.config.threads:
            self.evidence["threads_reason"] = THE_RECIPE
            return self.config.threads
        if physical == logical or self.work.device == "cuda":
            self.evidence["threads_reason"] = "one a core"
            return logical

        def timed(count: int) -> Callable[[], None]:
            step = self.part.step(torch.float32, self.work.model.attention)

            def run() -> None:
                torch.set_num_threads(count)
                step()

            return run

        def measure() -> dict[str, float]:
            return benchmark({str(count): timed(count) for count in (logical, physical)}, self.work.device)

        seconds = self.measured.get_or_measure(f"fp32 by threads {logical} and {physical}", measure)
        self.evidence.update({f"threads_{count}_seconds": round(spent, 4) for count, spent in seconds.items()})
        self.evidence["threads_reason"] = f"measured: {physical} physical cores of {logical}"
        return logical if seconds[str(logical)] < seconds[str(physical)] else physical

    # -- plain or compiled ------------------------------------------------------------------------------------------

    def _choose(self) -> ComputeConfig:
        seconds = self._plain_seconds()
        tries = self._tries_compiling(min(seconds.values()))
        plain, compiled = self._precisions(seconds, tries)
        device, threads, evidence = self.work.device, self.threads, self.evidence
        if tries:
            try:
                attention = self._attention(compiled, compiling=True)
                chosen = ComputeConfig(device, compiled, attention, True, threads, evidence)
                if self._must_compile:
                    self._compile(chosen)
                    return chosen
                other = ComputeConfig(device, plain, self._attention(plain, compiling=False), False, threads, evidence)
                if self._pays(chosen, other):
                    return chosen
                uncompile(self.work.model)
                return other
            except Exception as error:  # no compiler, or one that fails: the plain code is always there
                uncompile(self.work.model)
                failure = f"compiling failed: {first_line(error)}"
                if self._must_compile:
                    hint = "set runtime.compile to auto or false, and runtime.attention to auto"
                    raise FledgeError(failure, where="runtime.compile", hint=hint) from error
                evidence["compile_reason"] = failure
                self.say(f"warning: {failure}; going on without")
        return ComputeConfig(device, plain, self._attention(plain, compiling=False), False, threads, evidence)

    @property
    def _must_compile(self) -> bool:
        return self.config.compile is True or self.config.attention == "flex"

    def _tries_compiling(self, seconds: float) -> bool:
        """Whether it is asked for, or enough training is ahead; `seconds` are those of the small step in plain code."""
        if self._must_compile or self.config.compile is False:
            self.evidence["compile_reason"] = THE_RECIPE
            return self._must_compile
        share = self.work.batch.input_ids.numel() / self.part.batch.input_ids.numel()
        ahead = self.work.whole(seconds * share) * self.micro_steps
        if ahead < MIN_SECONDS_TO_COMPILE:
            self.evidence["compile_reason"] = f"about {ahead:.0f} s of training is too short for compiling to pay"
        return ahead >= MIN_SECONDS_TO_COMPILE

    def _pays(self, compiled: ComputeConfig, plain: ComputeConfig) -> bool:
        """Compile and compare; what was compared before is not compared again, only compiled if it won."""
        place = f"{_name(plain)} against {_name(compiled)}, whole micro-batch"

        def measure() -> dict[str, float]:
            self.say("compiling the model's block to see whether it pays …")
            fast = self._compile(compiled)
            slow = self.work.step(DTYPES[plain.precision], plain.attention)
            return time_compiled(slow, fast, self.work.device)

        least = self.measured.get_or_measure(place, measure)
        self.evidence.update({f"{name}_seconds": round(seconds, 4) for name, seconds in least.items()})
        self.evidence["compile_reason"] = "measured on one layer and the head"
        pays = least["compiled"] < MAX_COMPILED_RATIO * least["eager"]
        if pays and place in self.measured.recalled:
            self._compile(compiled)
        return pays

    def _compile(self, decision: ComputeConfig) -> Callable[[], None]:
        """Make all compiled code of a step, on the shapes of training; gives the step."""
        step = self.work.step(DTYPES[decision.precision], decision.attention, compiled_kernel())
        compile_blocks(self.work.model)
        use_float32(decision.precision)
        started = time.perf_counter()
        compile_with_cache_retry(step, self.say)
        self.evidence["compile_seconds"] = round(time.perf_counter() - started, 1)
        return step

    # -- precision --------------------------------------------------------------------------------------------------

    def _plain_seconds(self) -> dict[str, float]:
        """Seconds of the small step in plain code, in each precision that may be chosen."""
        config, device = self.config, self.work.device
        units = capability(device)
        if config.precision != "auto":
            self.evidence["precision_reason"], names = THE_RECIPE, [config.precision]
            if config.precision == "fp16" and device == "cpu":
                self.say("warning: runtime.precision fp16 is slow on a CPU, which has no units for it")
        elif units is not None:
            precision, self.evidence["precision_reason"] = rules.on_gpu(units)
            names = [precision]
        else:
            self.evidence["precision_reason"], names = "measured on a piece of a micro-batch", ["fp32", "bf16"]
        if config.compile != "auto" and len(names) == 1:
            return dict.fromkeys(names, 0.0)  # nothing hangs on it
        use_float32(names[0])
        attention = self.work.model.attention
        runs = {name: self.part.step(DTYPES[name], attention) for name in names}
        place = f"plain {' '.join(names)}, attention {attention}, {self.threads} threads"
        seconds = self.measured.get_or_measure(place, lambda: benchmark(runs, device))
        self.evidence.update({f"{name}_seconds": round(spent, 4) for name, spent in seconds.items()})
        return seconds

    def _precisions(self, seconds: dict[str, float], tries: bool) -> tuple[str, str]:
        """The precision for plain code, and that for compiled code if that is tried."""
        if len(seconds) == 1:
            only = next(iter(seconds))
            return only, only
        plain = rules.without_compiling(seconds)
        if not tries:
            return plain, plain
        peaks = {name: self._peak(name) for name in ("fp32", "bf16")}
        self.evidence.update({f"{name}_peak_flops": round(peak) for name, peak in peaks.items()})
        return plain, rules.with_compiling(seconds, peaks)

    def _peak(self, precision: str) -> float:
        """FLOP/s of matrix products in this precision, measured; written down for MFU."""
        device, config = self.work.device, self.work.model.config
        use_float32(precision)

        def measure() -> float:
            return matmul_peak(device, DTYPES[precision], product_sizes(config, device))

        peak = self.measured.get_or_measure(f"matmul peak {precision}, {self.threads} threads", measure)
        self.evidence["matmul_peak_flops"] = round(peak)
        return peak

    # -- attention --------------------------------------------------------------------------------------------------

    def _candidates(self, dtype: torch.dtype, compiling: bool) -> list[str]:
        """Attention backends that the device can train with and the model has."""
        names = attention_candidates(self.work.device, dtype, compiling)
        return [name for name in names if name in self.work.model.attention_backends]

    def _attention(self, precision: str, compiling: bool) -> str:
        """The fastest backend in this precision, in plain or in compiled code: they are not the same ones."""
        config, dtype = self.config, DTYPES[precision]
        if config.attention != "auto":
            self.evidence["attention_reason"] = THE_RECIPE
            return config.attention
        names = self._candidates(dtype, compiling)
        way = "compiled" if compiling else "plain"
        place = f"attention {' '.join(names)} in {precision}, {way}, {self.threads} threads"
        if compiling:
            self.say("compiling attention to see which is fastest …")
        found = self.measured.get_or_measure(place, lambda: time_attention(self.part, dtype, names, compiling, self.say))
        self.evidence.update({f"attention_{name}_{way}": value for name, value in found.items()})
        self.evidence["attention_reason"] = "measured forward and back on the shapes of a micro-batch"
        return fastest(found)


def _name(decision: ComputeConfig) -> str:
    way = "compiled" if decision.compile else "plain"
    return f"{way} {decision.precision} with attention {decision.attention}, {decision.threads} threads"

"""What a CPU multiplies itself."""

import platform
from pathlib import Path

import pytest

from fledge.model.cpu_products import multiplies_bf16

FLAGS = Path("/proc/cpuinfo")


@pytest.mark.skipif(not FLAGS.exists() or platform.machine() != "x86_64", reason="the flags of the CPU are read from /proc")
def test_bf16_is_multiplied_where_the_flags_of_the_cpu_say_so() -> None:
    flags = set(next(line for line in FLAGS.read_text().splitlines() if line.startswith("flags")).split())
    assert multiplies_bf16() is bool(flags & {"avx512_bf16", "amx_bf16", "amx_tile"})


def test_another_kind_of_cpu_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert multiplies_bf16() is None

"""What a CPU multiplies itself."""

import platform

X86 = frozenset({"x86_64", "amd64", "AMD64"})


def multiplies_bf16() -> bool | None:
    """Whether this CPU multiplies bfloat16, by AVX-512 BF16 or AMX; None where that is not known. One that does not converts to
    float32 and back: products are several times slower than those of float32, and hold their results once more in it."""
    if platform.machine() not in X86:
        return None
    import torch  # only here: commands that read data do without

    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()

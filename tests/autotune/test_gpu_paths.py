"""Each generation of GPUs gets the path that the table says, and what it cannot do is refused in words."""

import re

import pytest
import torch

from fledge.autotune.gpu_paths import GPU_PATHS, attention_candidates, check_build, gpu_path
from fledge.autotune.precision import DTYPES, check_supported, gpu_precision
from fledge.errors import FledgeError
from fledge.recipe.schema import RuntimeConfig
from tests.support import markdown

CAPABILITIES = {"T4": (7, 5), "V100": (7, 0), "RTX 30": (8, 6), "RTX 40": (8, 9), "A100": (8, 0), "H100": (9, 0)}
WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize(
    ("card", "precision", "plain", "compiled"),
    [
        ("V100", "fp16", ["sdpa", "blocked"], ["sdpa", "blocked"]),
        ("T4", "fp16", ["sdpa", "blocked"], ["sdpa", "blocked"]),
        ("A100", "bf16", ["sdpa", "blocked", "varlen"], ["sdpa", "blocked", "varlen", "flex"]),
        ("RTX 30", "bf16", ["sdpa", "blocked", "varlen"], ["sdpa", "blocked", "varlen", "flex"]),
        ("RTX 40", "bf16", ["sdpa", "blocked", "varlen"], ["sdpa", "blocked", "varlen", "flex"]),
        ("H100", "bf16", ["sdpa", "blocked", "varlen"], ["sdpa", "blocked", "varlen", "flex"]),
    ],
)
def test_each_card_gets_its_path(card: str, precision: str, plain: list[str], compiled: list[str]) -> None:
    capability = CAPABILITIES[card]
    assert card in gpu_path(capability).cards and gpu_precision(capability)[0] == precision
    dtype = DTYPES[precision]
    assert attention_candidates("cuda", dtype, False, capability) == plain
    assert attention_candidates("cuda", dtype, True, capability) == compiled
    assert "varlen" not in attention_candidates("cuda", torch.float32, True, capability)


def test_a_card_between_two_entries_has_the_path_of_the_lower_one() -> None:
    assert (
        gpu_path((8, 7)) is GPU_PATHS[8, 6] and gpu_path((10, 3)) is GPU_PATHS[10, 0] and gpu_path((12, 1)) is GPU_PATHS[12, 0]
    )
    assert gpu_precision((6, 1))[0] == "fp32" and attention_candidates("cpu", torch.float32, True) == [
        "blocked",
        "sdpa",
        "segments",
    ]


@pytest.mark.parametrize(
    ("card", "settings", "words"),
    [
        ("T4", {"precision": "bf16"}, r"no bf16 units \(compute capability 7\.5; bf16 needs 8\.0\)(.|\n)*fp16 here"),
        ("V100", {"precision": "bf16"}, r"no bf16 units \(compute capability 7\.0"),
        ("T4", {"attention": "varlen"}, r"runtime\.attention: attention varlen needs FlashAttention.*8\.0.*has 7\.5"),
        ("V100", {"attention": "varlen", "precision": "fp16"}, r"FlashAttention.*has 7\.0"),
        ("V100", {"precision": "tf32"}, r"tf32 exists on GPUs from compute capability 8\.0"),
        ("A100", {"attention": "varlen", "precision": "fp32"}, "bf16 and fp16 only"),
    ],
)
def test_what_a_card_cannot_do_is_refused_in_words(card: str, settings: dict[str, str], words: str) -> None:
    with pytest.raises(FledgeError) as caught:
        check_supported(RuntimeConfig.model_validate(settings), "cuda", CAPABILITIES[card])
    assert re.search(words, str(caught.value)) and caught.value.hint


def test_a_build_of_pytorch_without_code_for_the_gpu_is_refused_in_words() -> None:
    with pytest.raises(FledgeError) as caught:
        check_build((7, 0), WHEEL, "2.11.0+cu130")
    assert "2.11.0+cu130 has no code for this GPU (compute capability 7.0; it was built for sm_75, sm_80" in str(caught.value)
    assert "an older build" in str(caught.value.hint) and "sm_70" in str(caught.value.hint) and "cpu" in str(caught.value.hint)
    for capability in ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0)):
        check_build(capability, WHEEL, "2.11.0")
    with pytest.raises(FledgeError, match="a newer build"):
        check_build((12, 0), ["sm_80", "sm_90"], "2.11.0")
    check_build((12, 0), ["sm_80", "compute_90"], "2.11.0")
    check_build((9, 0), ["sm_90a"], "2.11.0")
    check_build((9, 0), [], "a build that does not say")


def test_the_table_in_the_documents_is_the_one_in_the_code() -> None:
    text = (markdown.ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    for (major, minor), path in GPU_PATHS.items():
        number = f"{major}.{minor}" if major else "below 7.0"
        attention = ", ".join(f"`{name}`" for name in path.attention)
        assert f"| {number} | {path.cards} | {path.precision} | {attention} |" in text, number

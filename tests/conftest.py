"""Fixtures for all tests: real data and tiny trained tokenizers; settings of hypothesis."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from fledge.tokenizer import Tokenizer, train_tokenizer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # tiny products gain nothing from threads, and lose much where others want the cores
os.environ["FLEDGE_LANGUAGE"] = "en"  # whatever the locale is: tests read English messages
os.environ["FLEDGE_CACHE"] = tempfile.mkdtemp(prefix="fledge-cache-")  # never the user's own
atexit.register(shutil.rmtree, os.environ["FLEDGE_CACHE"], ignore_errors=True)
settings.register_profile("fledge", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fledge")

TEXTS = [
    "The quick brown fox jumps over the lazy dog. What is 12 plus 30? It is 42, said the fox.",
    "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。",
    "system user assistant question answer hello world, you are a helpful friend.\n\nPlease write a short poem.",
    "你好！我是一个小语言模型。请问有什么可以帮助你的吗？今天是2024年1月31日。",
] * 3


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data (FLEDGE_DATA, else ../shared/data)."""
    folder = Path(os.environ.get("FLEDGE_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set FLEDGE_DATA")
    return folder


@pytest.fixture(scope="session")
def chatml() -> Tokenizer:
    """A tiny tokenizer with the ChatML template."""
    return train_tokenizer(TEXTS, 420, "chatml")


@pytest.fixture(scope="session")
def inst() -> Tokenizer:
    """A tiny tokenizer with the [INST] template."""
    return train_tokenizer(TEXTS, 420, "inst")

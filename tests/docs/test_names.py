"""Names in backticks exist: files, symbols, recipe keys, metrics, options."""

import importlib
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest

from tests.support import markdown, recipe_keys, source_index

ROOT = markdown.ROOT
DOCUMENTS = [document for document in markdown.documents() if document.name != "CHANGELOG.md"]  # it has old names on purpose
CODE_FOLDERS = ("src", "tests", "benchmarks", "docs", "recipes", ".ci")
FILE_ENDINGS = (
    "json", "jsonl", "ndjson", "yaml", "md", "html", "txt", "csv", "tsv", "py", "parquet", "safetensors", "gz", "zst", "jinja",
    "log", "svg", "toml",
)  # fmt: skip
EXTERNAL = {  # names of other projects that no code of ours mentions
    "TrainingArguments", "SFTTrainer", "match_rms_adamw", "CUDA_VISIBLE_DEVICES", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY",
    "alpaca_zh_demo", "alpaca_en_demo", "dpo_en_demo", "dpo_zh_demo", "exp_avg", "exp_avg_sq", "mlp.gate.weight",
    "mlp.gate.e_score_correction_bias", "transformers.generate",
}  # fmt: skip
PLACEHOLDERS = {"threads_N_seconds"}
RUN_FOLDERS = {"data", "model", "tokenizer", "world"}  # of a run directory; packages of the code have these names too
METRICS = ("train", "eval", "system", "router", "grad_noise", "update_ratio", "prompt_tests", "rewards", "logps")
OTHER_COMMANDS = {"--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint"}  # torchrun's


def _is_file(span: str, document: Path) -> bool:
    bases = (ROOT, source_index.PACKAGE, ROOT / "benchmarks", ROOT / "docs", document.parent)
    return any((base / span).exists() for base in bases)


@cache
def _shown_files(document: Path) -> frozenset[str | None]:
    """The files that a document shows."""
    return frozenset(block.file for block in markdown.blocks(document))


@cache
def _python_files() -> frozenset[str]:
    """The ends of the paths of all files of code: `c.py`, `b/c.py`, `a/b/c.py`."""
    files = [
        file.relative_to(ROOT).parts for folder in ("src", "tests", "benchmarks") for file in (ROOT / folder).rglob("*.py")
    ]
    return frozenset("/".join(parts[start:]) for parts in files for start in range(1, len(parts)))


@cache
def _option_sources() -> str:
    """The code of the command and of the benchmarks, which names their options."""
    files = [*(source_index.PACKAGE / "cli").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    return "".join(file.read_text(encoding="utf-8") for file in files)


@cache
def _suffixes() -> tuple[str, ...]:
    """Ends of names that code composes, such as f"{part}_seconds"."""
    return tuple(text for text in source_index.strings() if text[:1] == "_")


@cache
def _spans(document: Path) -> tuple[tuple[int, str], ...]:
    return tuple(markdown.code_spans(document))


def path_problem(span: str, document: Path) -> str | None:
    """The path if it names a file of the code that does not exist. Files that the document itself shows are exempt."""
    name = span.split()[0]
    first = name.partition("/")[0]
    if not re.fullmatch(r"[\w./-]+", name) or name in _shown_files(document):
        return None
    if name.endswith(".py"):  # the end of a path is enough
        return None if name in _python_files() or _is_file(name, document) else f"there is no file {name}"
    if first in CODE_FOLDERS or (name.endswith("/") and first in source_index.packages() - RUN_FOLDERS and name.count("/") > 1):
        return None if _is_file(name, document) else f"there is no file {name}"
    return None


def _imports(dotted: str) -> bool:
    """Whether a symbol of an installed library exists."""
    module, _, name = dotted.rpartition(".")
    with suppress(ImportError):
        if hasattr(importlib.import_module(module), name):
            return True
    with suppress(ImportError):  # a submodule is an attribute of its package only after its import
        return bool(importlib.import_module(dotted))
    return False


def symbol_problem(span: str, document: Path) -> str | None:
    """`a.b` that is no symbol of the code, no key of a recipe and no symbol of a library."""
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", span) or span.rpartition(".")[2] in FILE_ENDINGS:
        return None
    if span in recipe_keys.suffixes() | source_index.strings() | EXTERNAL or source_index.resolves(span):
        return None
    if span.partition(".")[0] in ("torch", "transformers", "numpy") and _imports(span):
        return None
    return f"{span} is no symbol and no key of a recipe"


def word_problem(span: str, document: Path) -> str | None:
    """An identifier, with an underscore or with capitals inside, that nothing in the project mentions."""
    if not re.fullmatch(r"[A-Za-z]\w*", span) or not ("_" in span or re.search(r"[a-z][A-Z]", span)):
        return None
    if _is_known(span) or any(span.endswith(end) and _is_known(span.removesuffix(end)) for end in _suffixes()):
        return None
    return f"nothing mentions {span}"


def _is_known(name: str) -> bool:
    return name in source_index.words() or name in EXTERNAL or name in PLACEHOLDERS


def metric_problem(span: str, document: Path) -> str | None:
    """`train/…` and the like that no code writes."""
    first, slash, rest = span.partition("/")
    if not slash or first not in METRICS or not re.fullmatch(r"[\w/]*\w", rest):
        return None
    known = source_index.strings()
    composed = "/" in rest or first in ("eval", "prompt_tests", "update_ratio")  # f"{first}/{rest}"
    written = span in known or (composed and rest in known and f"{first}/" in known)
    return None if written else f"nothing writes {span}"


def option_problem(span: str, document: Path) -> str | None:
    """An option that neither the command nor a benchmark has, and that is no key of a recipe."""
    option = re.match(r"--[\w.-]+", span)
    if option is None or option[0] in OTHER_COMMANDS:
        return None
    name = option[0]
    if name[2:] in recipe_keys.all_keys() or re.sub(r"^stages\.\w+", "stages.*", name[2:]) in recipe_keys.all_keys():
        return None
    if name in ("--key.of.recipe", "--any.key", "--dotted.key", "--key"):
        return None
    return None if f'"{name}"' in _option_sources() or name in ("--help", "--version") else f"no command has the option {name}"


@pytest.mark.parametrize("find", [path_problem, symbol_problem, word_problem, metric_problem, option_problem])
@pytest.mark.parametrize("document", DOCUMENTS, ids=markdown.label)
def test_names_in_backticks_exist(document: Path, find: Callable[[str, Path], str | None]) -> None:
    problems = [f"{line}: {text}" for line, span in _spans(document) if (text := find(span, document))]
    assert not problems, "\n".join(problems)


def test_each_check_reports_a_name_that_does_not_exist() -> None:
    document = ROOT / "README.md"
    assert path_problem("src/fledge/nowhere.py", document) and not path_problem("src/fledge/pipeline.py", document)
    assert path_problem("nowhere.py --quick", document) and not path_problem("kill_resume.py --kills 100", document)
    assert symbol_problem("cli.nothing", document) and not symbol_problem("cli.main", document)
    assert symbol_problem("batch.micro", document) and not symbol_problem("batch.micro_batch_size", document)
    assert symbol_problem("torch.nothing", document) and not symbol_problem("torch.compile", document)
    assert word_problem("long_conversations", document) and not word_problem("max_seq_len", document)
    assert metric_problem("train/learning_rate", document) and not metric_problem("train/lr", document)
    assert option_problem("--frist 3", document) and not option_problem("--dry-run", document)
    assert option_problem("--stages.sft.optimizer.lr 1", document)
    assert not option_problem("--stages.sft.optimizer.learning_rate 1", document)

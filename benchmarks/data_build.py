"""Building data: read, clean, drop exact duplicates, tokenise, pack; against a `datasets` map pipeline with equal steps.

The corpus is made from real text ($FLEDGE_DATA or ../shared/data; without it, from the quickstart's world): documents of
about 2 KB in English and Chinese, 3 % exact duplicates, some markup and some Windows line ends. Both use one
tokenizer and one cleaning function, and two processes. Peak memory is the sum over all processes, measured from
outside. Near duplicates are measured by benchmarks/near_duplicates.py, whose figures are repeated here.
"""

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from measure import data_folder, interleave, options, ratios, report

from fledge.data.cleaning.cleaning import CleaningSteps, clean_text
from fledge.recipe.schema import CleanConfig
from fledge.tokenizer import train_tokenizer

ROW, CONTEXT, VOCABULARY = 512, 512, 6400


def sentences() -> tuple[list[str], list[str]]:
    """English and Chinese sentences of the real data."""
    folder = data_folder()
    if not folder.exists():
        from fledge.world import build

        with tempfile.TemporaryDirectory() as temporary:
            build(7, Path(temporary))
            texts = [json.loads(line)["text"] for line in (Path(temporary) / "pretrain.jsonl").open()]
        return [t for t in texts if t.isascii()], [t for t in texts if not t.isascii()]
    english, chinese = [], []
    llama = folder / "llamafactory"
    documents = [json.loads(line)["text"] for line in (llama / "c4_demo.jsonl").open()]
    documents += (llama / "wiki_demo.txt").read_text().splitlines()
    documents.append((folder / "shakespeare" / "input.txt").read_text())
    for text in documents:
        english += [sentence.strip() for sentence in re.split(r"(?<=[.!?])\s+", text) if 20 < len(sentence) < 400]
    for row in json.loads((llama / "alpaca_zh_demo.json").read_text()):
        chinese += [sentence for sentence in re.split(r"(?<=[。！？])", row["output"]) if 8 < len(sentence) < 300]
    for file in sorted((folder / "poetry").glob("*.json"))[:20]:
        chinese += [line for poem in json.loads(file.read_text()) for line in poem["paragraphs"]]
    return english, chinese


def make_corpus(file: Path, megabytes: float, seed: int = 3) -> None:
    """Rows of jsonl: sentences of real text in random order, so that documents differ."""
    english, chinese = sentences()
    rng = random.Random(seed)
    written, recent = 0, [""]
    with file.open("wb") as out:
        while written < megabytes * 1e6:
            if rng.random() < 0.03:
                text = rng.choice(recent)
            else:
                pool, count, glue = (english, 18, " ") if rng.random() < 0.6 else (chinese, 30, "")
                sentences_of_text = rng.choices(pool, k=max(1, int(rng.gauss(count, count / 3))))
                sentences_of_text = [sentence + ("\n\n" if rng.random() < 0.15 else glue) for sentence in sentences_of_text]
                text = "".join(sentences_of_text).strip()
                if rng.random() < 0.05:
                    text = f"<div class='article'><p>{text}</p><br></div>"
                elif rng.random() < 0.05:
                    text = text.replace("\n", "\r\n")
                recent = [*recent[-200:], text]
            written += out.write(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")


def with_fledge(corpus: Path, tokenizer: Path, out: Path) -> int:
    """Build with fledge; the number of tokens."""
    from fledge.data import collect, encode
    from fledge.data.build.executors import ProcessPoolExecutor
    from fledge.recipe import recipe_from_dict
    from fledge.tokenizer import load_tokenizer

    data = {"train": str(corpus), "validation": 0, "max_seq_len": CONTEXT, "clean": {"min_tokens": 0}}
    stage = recipe_from_dict({"stages": {"a": {"kind": "pretrain", "data": data}}}).stages["a"]
    executor = ProcessPoolExecutor(2)
    collected = collect(stage, "a", 1, out, executor)
    return encode(collected, load_tokenizer(tokenizer), executor).train.num_tokens


def with_datasets(corpus: Path, tokenizer: Path, out: Path) -> int:
    """Build with `datasets` (batched maps over two processes, default caching); the number of tokens."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import datasets
    import xxhash
    from transformers import PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    coder = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    start, end = coder.convert_tokens_to_ids("<|endoftext|>"), coder.convert_tokens_to_ids("<|endoftext|>")
    steps = CleaningSteps.of(CleanConfig(), strip_html=True)
    digests: set[bytes] = set()

    def clean(batch: dict) -> dict:
        texts = [clean_text(text, steps)[0] for text in batch["text"]]
        return {"text": texts, "hash": [xxhash.xxh3_128_digest(text.encode()) for text in texts]}

    def first(batch: dict) -> list[bool]:
        kept = []
        for digest in batch["hash"]:
            kept.append(digest not in digests)
            digests.add(digest)
        return kept

    def tokenise(batch: dict) -> dict:
        encoded = coder(batch["text"], add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return {"input_ids": [[start, *ids, end] for ids in encoded]}

    def pack(batch: dict) -> dict:
        joined = [token for ids in batch["input_ids"] for token in ids]
        return {"input_ids": [joined[i : i + ROW] for i in range(0, len(joined), ROW)]}

    data = datasets.load_dataset("json", data_files=str(corpus), split="train", cache_dir=str(out))
    data = data.map(clean, batched=True, num_proc=2)
    data = data.filter(first, batched=True)
    data = data.map(tokenise, batched=True, num_proc=2, remove_columns=["text", "hash"])
    data = data.map(pack, batched=True, num_proc=2)
    return sum(len(row) for batch in data.iter(1000) for row in batch["input_ids"])


def measured(kind: str, corpus: Path, tokenizer: Path) -> tuple[float, float, int]:
    """(seconds, peak MiB over all processes, tokens) of one pipeline in a process of its own."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, __file__, "--worker", kind, str(corpus), str(tokenizer), str(Path(out) / "data")]
        begun = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "HF_HOME": out})
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, sum(_memory(one) for one in _family(process.pid)))
            time.sleep(0.1)
        seconds = time.perf_counter() - begun
        assert process.stdout is not None and process.returncode == 0, f"{kind} failed"
        return seconds, peak / 2**20, int(process.stdout.read().split()[-1])


def _family(pid: int) -> Iterator[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        yield parent
        yield from parent.children(recursive=True)
    except psutil.Error:
        return


def _memory(process: psutil.Process) -> float:
    """Memory of a process's own; pages shared with others are divided among them."""
    try:
        return process.memory_full_info().pss
    except psutil.Error:
        return 0


def main() -> None:
    """Measure and print."""
    parser = options(__doc__ or "")
    parser.add_argument("--megabytes", type=float, default=None, help="size of the corpus for the ratio (default 160)")
    parser.add_argument("--rounds", type=int, default=None, help="interleaved rounds (default 5)")
    parser.add_argument("--flat", type=float, nargs="*", default=None, help="sizes in MB for peak memory (default 50 500)")
    chosen = parser.parse_args()
    size = chosen.megabytes or (6 if chosen.quick else 160)
    rounds = chosen.rounds or (1 if chosen.quick else 5)
    sizes = chosen.flat if chosen.flat is not None else ([2, 6] if chosen.quick else [50, 500])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        corpus, tokenizer = folder / "corpus.jsonl", folder / "tokenizer"
        make_corpus(corpus, size)
        sample = (json.loads(line)["text"] for _, line in zip(range(4000), corpus.open(), strict=False))
        train_tokenizer(sample, VOCABULARY).save(tokenizer)
        megabytes = corpus.stat().st_size / 1e6
        tokens: dict[str, int] = {}
        peaks: dict[str, float] = {}

        def run(kind: str) -> float:
            seconds, peak, count = measured(kind, corpus, tokenizer)
            tokens[kind], peaks[kind] = count, max(peaks.get(kind, 0), peak)
            return seconds

        seconds = interleave({kind: (lambda kind=kind: run(kind)) for kind in ("fledge", "datasets")}, rounds)
        flat = {}
        for each in sizes:
            other = folder / "other.jsonl"
            make_corpus(other, each)
            flat[f"{each:g}"] = round(measured("fledge", other, tokenizer)[1])
            other.unlink()
    rate = {kind: round(megabytes / sorted(values)[len(values) // 2], 2) for kind, values in seconds.items()}
    near = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("near_duplicates.py")), *(["--quick"] if chosen.quick else [])],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    near_results = json.loads(near.stdout.splitlines()[-1])
    report(
        {
            "ratio_datasets": ratios(seconds["datasets"], seconds["fledge"]),
            "mb_per_second": rate,
            "megabytes": round(megabytes, 1),
            "tokens": tokens,
            "peak_mib": round(peaks["fledge"]),
            "peak_mib_datasets": round(peaks["datasets"]),
            "peak_mib_by_size": flat,
            **{key: near_results[key] for key in ("near_dedup_docs_per_second", "recall", "false_positives")},
        }
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        kind, corpus, tokenizer, out = sys.argv[2:]
        print({"fledge": with_fledge, "datasets": with_datasets}[kind](Path(corpus), Path(tokenizer), Path(out)))
    else:
        main()

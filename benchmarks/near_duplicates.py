"""Near duplicates: documents per second through n-grams, signatures, candidates and verification; recall; false positives.

The documents are of about 2 KB, English and Chinese, made of real sentences from $FLEDGE_DATA or ../shared/data (without it,
of generated ones). A tenth of the documents are edited copies: words replaced, sentences dropped, case and punctuation
changed. Recall counts the copies whose true similarity to their original is at least the threshold; false positives are
rows called duplicates among paragraphs that have nothing to do with each other.
"""

import glob
import json
import os
import random
import re
import statistics
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from measure import interleave, options, report

from fledge.data.cleaning.duplicates import near_duplicates, signature_backend, signatures
from fledge.data.cleaning.ngrams import jaccard, shingle_set, shingles

THRESHOLD = 0.8
CHUNK = 1000

SUBJECTS, THINGS, QUALITIES, PLATFORMS, ACTIONS = (
    line.split()
    for line in (
        "parser renderer scheduler router tokenizer sampler solver profiler planner compiler viewer indexer",
        "graphs maps tables images tensors streams logs archives queues trees sounds recipes proteins orbits",
        "small fast lazy typed portable tested incremental offline streaming parallel readable strict",
        "browsers servers notebooks phones clusters terminals editors routers microcontrollers",
        "reads writes checks converts compares merges splits draws caches sorts compresses explains",
    )
)


def readme(number: int) -> str:
    """A paragraph as in thousands of README files: few words of its own and much shared text."""
    draw = random.Random(number)
    name = f"{draw.choice(QUALITIES)}{draw.choice(SUBJECTS)}{number}"
    subject, things, platforms = draw.choice(SUBJECTS), draw.sample(THINGS, 3), draw.sample(PLATFORMS, 2)
    actions, qualities = draw.sample(ACTIONS, 4), draw.sample(QUALITIES, 3)
    return (
        f"# {name}\n\n{name} is a {qualities[0]}, {qualities[1]} {subject} for {things[0]} on {platforms[0]} "
        f"and {platforms[1]}. It {actions[0]} {things[1]} and {actions[1]} {things[2]} in {draw.randint(2, 900)} lines of "
        f"{draw.choice(['Python', 'Rust', 'Go', 'C', 'Zig'])}, and {actions[2]} what it {actions[3]}.\n\n"
        f"## Installation\n\n    pip install {name}\n\nRequires Python 3.{draw.randint(8, 13)} or newer. To install from "
        "source, clone the repository and run `pip install -e .` in it.\n\n"
        f"## Usage\n\n    import {name}\n    {name}.run({things[0]!r})\n\n"
        f"See the documentation for {qualities[2]} {things[1]}. Contributions are welcome. Licensed under the MIT license.\n"
    )


def sentences(folder: Path) -> tuple[list[str], list[str]]:
    """English and Chinese sentences, real ones if there are any."""
    if not folder.is_dir():
        draw = random.Random(0)
        words = ["".join(draw.choices("aeioubdfgklmnprstvz", k=draw.randint(2, 9))) for _ in range(20_000)]
        english = [" ".join(draw.choices(words, k=draw.randint(8, 25))).capitalize() + "." for _ in range(20_000)]
        characters = [chr(draw.randint(0x4E00, 0x6FFF)) for _ in range(3000)]
        return english, ["".join(draw.choices(characters, k=draw.randint(10, 25))) + "。" for _ in range(20_000)]
    lines = (folder / "llamafactory" / "c4_demo.jsonl").read_text(encoding="utf-8").splitlines()
    text = "\n".join(json.loads(line)["text"] for line in lines) + (folder / "llamafactory" / "wiki_demo.txt").read_text(
        "utf-8"
    )
    english = [sentence for sentence in dict.fromkeys(re.split(r"(?<=[.!?])\s+|\n", text)) if len(sentence.split()) >= 6]
    files = sorted(glob.glob(str(folder / "poetry" / "*.json")))[:20]
    poems = [poem for file in files for poem in json.loads(Path(file).read_text(encoding="utf-8"))]
    return english, list(dict.fromkeys(line for poem in poems for line in poem["paragraphs"]))


def document(english: Sequence[str], chinese: Sequence[str], draw: random.Random) -> str:
    """About 2 KB of sentences in one of the two languages."""
    pool, joint, size = (chinese, "", 700) if draw.random() < 0.3 else (english, " ", 2000)
    sentences: list[str] = []
    while sum(map(len, sentences)) < size:
        sentences.append(draw.choice(pool))
    return joint.join(sentences)


def edited(text: str, draw: random.Random) -> str:
    """A copy with up to one word in sixteen changed, a sentence dropped, other case or other punctuation."""
    spaced = " " in text[:200]
    units = text.split(" ") if spaced else list(text)
    for index in draw.sample(range(len(units)), int(len(units) * draw.choice([0.0, 0.005, 0.01, 0.02, 0.04, 0.06]))):
        units[index] = draw.choice(["", draw.choice(units), units[index] + draw.choice(units)])
    text = (" " if spaced else "").join(units)
    if draw.random() < 0.3:
        sentences = re.split(r"(?<=[.!?。])", text)
        del sentences[draw.randrange(len(sentences))]
        text = "".join(sentences)
    if draw.random() < 0.3:
        text = draw.choice([str.upper, str.lower, str.swapcase])(text)
    if draw.random() < 0.3:
        text = re.sub(r"[,;，；]", draw.choice([" -", "、", ""]), text)
    return text


def planted(count: int, folder: Path) -> tuple[list[str], dict[int, int]]:
    """Documents, and for each edited copy among them the number of its original, which comes earlier."""
    draw = random.Random(1)
    english, chinese = sentences(folder)
    texts = [document(english, chinese, draw) for _ in range(count * 9 // 10)]
    copies = {}
    for _ in range(count - len(texts)):
        original = draw.randrange(count * 9 // 10)
        copies[len(texts)] = original
        texts.append(edited(texts[original], draw))
    return texts, copies


def signatures_of(texts: list[str]) -> np.ndarray:
    """Signatures, as a worker computes them."""
    return signatures(*shingles(texts))


def representatives(texts: list[str], signs: np.ndarray, threshold: float) -> np.ndarray:
    """The row that represents each text, by `near_duplicates`; n-grams of candidates are computed again from their texts."""

    @lru_cache(maxsize=4096)
    def grams(row: int) -> np.ndarray:
        return shingle_set(texts[row])

    return near_duplicates(signs, threshold, lambda a, b: jaccard(grams(a), grams(b)))


def false_positives(texts: list[str]) -> int:
    """The number of these unrelated texts that are called duplicates."""
    return int(np.count_nonzero(representatives(texts, signatures_of(texts), THRESHOLD) != np.arange(len(texts))))


def unrelated(folder: Path, count: int) -> dict[str, list[str]]:
    """Paragraphs that are no duplicates of each other: README-like English, real or generated English, Chinese."""
    english, chinese = sentences(folder)
    draw = random.Random(2)
    draw.shuffle(english)
    draw.shuffle(chinese)
    return {
        "readme": [readme(number) for number in range(count)],
        "english": [" ".join(english[start : start + 3]) for start in range(0, min(3 * count, len(english)), 3)],
        "chinese": ["".join(chinese[start : start + 6]) for start in range(0, min(6 * count, len(chinese)), 6)],
    }


def seconds_of(work: Callable[[], object]) -> Callable[[], float]:
    """The work as something that returns how long it took."""

    def timed() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return timed


def main() -> None:
    """Measure and print the results as one line of JSON."""
    chosen = options(__doc__ or "").parse_args()
    folder = Path(os.environ.get("FLEDGE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    texts, copies = planted(10_000 if chosen.quick else 100_000, folder)
    chunks = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]
    with get_context("spawn").Pool(2) as pool:
        pool.map(signatures_of, chunks[:2], chunksize=1)
        signatures_by_method = [np.concatenate(list(way(signatures_of, chunks))) for way in (map, pool.map)]
        assert np.array_equal(*signatures_by_method)
        stages = {
            "signatures_one_core": seconds_of(lambda: list(map(signatures_of, chunks))),
            "signatures_two_cores": seconds_of(lambda: pool.map(signatures_of, chunks)),
            "candidates_and_verification": seconds_of(lambda: representatives(texts, signatures_by_method[0], THRESHOLD)),
        }
        seconds = {name: statistics.median(times) for name, times in interleave(stages, 3).items()}
    kept = representatives(texts, signatures_by_method[0], THRESHOLD)
    true = {row: jaccard(shingle_set(texts[row]), shingle_set(texts[first])) for row, first in copies.items()}
    near = [row for row in copies if true[row] >= THRESHOLD]
    wrong = {name: false_positives(paragraphs) for name, paragraphs in unrelated(folder, 1000).items()}
    rest = seconds["candidates_and_verification"]
    report(
        {
            "near_dedup_docs_per_second": round(len(texts) / (seconds["signatures_two_cores"] + rest)),
            "one_core_docs_per_second": round(len(texts) / (seconds["signatures_one_core"] + rest)),
            "recall": round(sum(kept[row] != row for row in near) / len(near), 4),
            "recall_of_all_planted": round(sum(kept[row] != row for row in copies) / len(copies), 4),
            "false_positives": sum(wrong.values()),
            "false_positives_by_kind": wrong,
            "planted_at_threshold": len(near),
            "planted": len(copies),
            "threshold": THRESHOLD,
            "documents": len(texts),
            "mean_bytes": round(sum(len(text.encode()) for text in texts) / len(texts)),
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "backend": signature_backend(),
            "quick": chosen.quick,
        }
    )


if __name__ == "__main__":
    main()

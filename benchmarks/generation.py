"""Generation with the 26M preset against transformers.generate: equal weights, prompts, and sequences at once.

Case `fixed`: 64 real prompts, 128 new tokens each. Case `ragged`: 256 prompts of which 64 are under way at a time, whose
answers end by themselves after very different numbers of tokens; the opponent takes them in batches of 64 of similar
length. Both decode greedily with a cache, each side in the faster of fp32 and bf16 (measured first, named in the result),
padding and prompts are not counted. The weights are random, drawn wide enough that answers wander through the vocabulary
instead of repeating one token; one token in 48 is a stop token in the ragged case. Prompts are read from $FLEDGE_DATA or
../shared/data; without it, from the quickstart's world.
"""

import json
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from measure import data_folder, interleave, options, ratios, report

from fledge.generation import Engine, SamplingParams
from fledge.model.decoder import Decoder
from fledge.recipe import ModelConfig
from fledge.tokenizer import Message, Tokenizer, train_tokenizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BATCH = 64


def questions(folder: Path) -> list[str]:
    """Prompts of users: real instructions in English and Chinese, else questions of the generated world."""
    real = data_folder() / "llamafactory"
    if real.exists():
        rows = [row for name in ("en", "zh") for row in json.loads((real / f"alpaca_{name}_demo.json").read_text("utf-8"))]
        prompts = [f"{row['instruction']}\n{row['input']}".strip() for row in rows]
    else:
        from fledge.world import build

        build(7, folder)
        lines = (folder / "sft.jsonl").read_text("utf-8").splitlines()
        prompts = [
            message["content"] for line in lines for message in json.loads(line)["messages"] if message["role"] == "user"
        ]
    random.Random(0).shuffle(prompts)
    return prompts


def make_model(vocab: int, limit: int) -> Decoder:
    """The 26M preset's sizes (the defaults) with wide random weights and room for `limit` positions."""
    model = Decoder(ModelConfig(initializer_range=0.1, max_position_embeddings=limit), vocab)
    model.init_weights(0)
    return model.eval()


def make_prompts(tokenizer: Tokenizer, texts: Sequence[str], count: int, longest: int) -> list[list[int]]:
    """The first `count` of those that are at most `longest` tokens long, as the chat template writes them."""
    prompts: list[list[int]] = []
    for text in texts:
        prompt = tokenizer.encode_prompt([Message("user", text)])
        if len(prompt) <= longest:
            prompts.append(prompt)
        if len(prompts) == count:
            return prompts
    raise SystemExit(f"only {len(prompts)} of {count} prompts")


class Contender:
    """Answers all prompts; keeps the answers, wall and processor seconds of the last call."""

    def __init__(self, answer: Callable[[list[list[int]], frozenset[int], int], list[list[int]]]) -> None:
        self.answer, self.tokens, self.cpu = answer, 0, 0.0
        self.answers: list[list[int]] = []

    def run(self, prompts: list[list[int]], stop: frozenset[int], most: int) -> float:
        """Answer the prompts and return the seconds."""
        before, started = time.process_time(), time.perf_counter()
        self.answers = self.answer(prompts, stop, most)
        seconds, self.cpu = time.perf_counter() - started, time.process_time() - before
        self.tokens = sum(map(len, self.answers))
        return seconds


class Fledge:
    """Continuous batching, the packing of the weights included; remembers the largest cache."""

    def __init__(self, model: Decoder, precision: str) -> None:
        self.model, self.dtype, self.cache_bytes = model, DTYPES[precision], 0

    def __call__(self, prompts: list[list[int]], stop: frozenset[int], max_new_tokens: int) -> list[list[int]]:
        """The new tokens for each prompt."""
        self.model.compute_dtype = self.dtype
        engine = Engine(self.model, stop, max_batch_size=BATCH)
        completions = engine.generate(prompts, SamplingParams(max_new_tokens=max_new_tokens))
        self.cache_bytes = max(self.cache_bytes, engine.cache.peak_bytes)
        return [completion.tokens for completion in completions]


class Opponent:
    """transformers.generate on left-padded batches, prompts of similar length together."""

    def __init__(self, folder: Path, precision: str, pad: int) -> None:
        from transformers import AutoModelForCausalLM

        self.model, self.pad = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[precision]).eval(), pad

    def __call__(self, prompts: list[list[int]], stop: frozenset[int], most: int) -> list[list[int]]:
        """The new tokens for each prompt."""
        answers: list[list[int]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        for start in range(0, len(order), BATCH):
            group = order[start : start + BATCH]
            width = max(len(prompts[index]) for index in group)
            ids = torch.tensor([[self.pad] * (width - len(prompts[index])) + prompts[index] for index in group])
            real = torch.tensor([[0] * (width - len(prompts[index])) + [1] * len(prompts[index]) for index in group])
            generated = self.model.generate(
                ids, attention_mask=real, do_sample=False, max_new_tokens=most, pad_token_id=self.pad,
                eos_token_id=sorted(stop) or None,
            )  # fmt: skip
            for index, row in zip(group, generated[:, width:].tolist(), strict=True):
                answers[index] = row[: next((end for end, token in enumerate(row) if token in stop), len(row))]
        return answers


def fastest(sides: dict[str, Contender], prompts: list[list[int]], most: int) -> tuple[str, dict[str, float]]:
    """Which precision is fastest, least of two short runs each, after one to warm up."""
    seconds = interleave({name: (lambda side=side: side.run(prompts, frozenset(), most)) for name, side in sides.items()}, 3)
    least = {name: round(min(times[1:]), 3) for name, times in seconds.items()}
    return min(least, key=lambda name: least[name]), least


def compare(ours: Contender, theirs: Contender, work: tuple[list[list[int]], frozenset[int], int], rounds: int) -> dict:
    """One case: tokens/s of both sides, how many times faster we are round by round, share of equal answers."""
    sides = {"theirs": theirs, "ours": ours}
    cpu: dict[str, list[float]] = {name: [] for name in sides}

    def timed(name: str) -> Callable[[], float]:
        def run() -> float:
            seconds = sides[name].run(*work)
            cpu[name].append(sides[name].cpu / sides[name].tokens)
            return seconds

        return run

    seconds = interleave({name: timed(name) for name in sides}, rounds)
    seconds_per_token = {
        name: [each / sides[name].tokens for each in times] for name, times in seconds.items()
    }  # greedy: always as many
    equal = sum(a == b for a, b in zip(ours.answers, theirs.answers, strict=True)) / len(work[0])
    lengths = sorted(map(len, ours.answers))
    return {
        "ratio": ratios(seconds_per_token["theirs"], seconds_per_token["ours"]),
        "ratio_cpu_time": ratios(cpu["theirs"], cpu["ours"]),
        "tokens_per_second": {name: round(1 / statistics.median(seconds_per_token[name])) for name in sides},
        "answer_tokens": {"least": lengths[0], "median": lengths[len(lengths) // 2], "most": lengths[-1]},
        "equal_answers": round(equal, 3),
    }


def main() -> None:
    """Measure and print the results as one line of JSON."""
    parser = options(__doc__ or "")
    parser.add_argument("--rounds", type=int, help="rounds (default 5)")
    parser.add_argument("--threads", type=int, help="threads of the matrix products (default: as PyTorch chooses)")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    fixed, most, count = (24, 48, 96) if chosen.quick else (128, 256, 256)
    longest = 64
    with tempfile.TemporaryDirectory() as name:
        texts = questions(Path(name))
        tokenizer = train_tokenizer(texts, 6400)
        prompts = make_prompts(tokenizer, texts, count, longest)
        model = make_model(tokenizer.vocab_size, longest + most)
        model.save_pretrained(Path(name) / "model", bos=None, eos=[tokenizer.pad], pad=tokenizer.pad)
        theirs = {key: Contender(Opponent(Path(name) / "model", key, tokenizer.pad)) for key in DTYPES}
    stop = frozenset(random.Random(1).sample(range(tokenizer.vocab_size), tokenizer.vocab_size // 48))
    forms = {key: Fledge(model, key) for key in DTYPES}
    ours = {key: Contender(form) for key, form in forms.items()}
    our_best, our_seconds = fastest(ours, prompts[:BATCH], 8)
    their_best, their_seconds = fastest(theirs, prompts[:BATCH], 8)
    rounds = chosen.rounds or 5
    few = 1 if chosen.quick else rounds
    same = (prompts[:BATCH], frozenset[int](), fixed)
    cases = {
        "fixed": compare(ours[our_best], theirs[their_best], same, rounds),
        "ragged": compare(ours[our_best], theirs[their_best], (prompts, stop, most), few),
        "fixed_fp32": compare(ours["fp32"], theirs["fp32"], same, few),
    }
    report(
        {
            "ratio": cases["fixed"]["ratio"]["median"],
            "ratio_ragged": cases["ragged"]["ratio"]["median"],
            "ranges": {key: case["ratio"] for key, case in cases.items()},
            "tokens_per_second": {key: case["tokens_per_second"] for key, case in cases.items()},
            "cases": cases,
            "precision": {"ours": our_best, "theirs": their_best},
            "seconds_of_8_tokens": {"ours": our_seconds, "theirs": their_seconds},
            "peak_cache_bytes": forms[our_best].cache_bytes,
            "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "prompt_tokens": sum(map(len, prompts)),
            "sequences_at_once": BATCH,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "quick": chosen.quick,
        }
    )


if __name__ == "__main__":
    main()

"""Peak memory of training steps over large vocabularies: fledge's head against the plain one, on one model.

The model has two layers of width 512 (tied embeddings), so that the head dominates as it does wherever a vocabulary is
large for its model. The plain head is what transformers computes: all logits, widened to float32, and cross_entropy.
Each measurement is a process of its own: the highest resident size it ever had, over two forward and backward passes, with
the interpreter and torch in it on both sides. Tokens are chosen so that the plain head stays below 8 GiB.
"""

import json
import resource
import statistics
import subprocess
import sys
import time

from measure import options, report

CONTEXT = 512
ROWS = {65_536: 16, 151_936: 6}  # rows of CONTEXT tokens
ROWS_QUICK = {65_536: 4, 151_936: 4}
MIB = 2**20


def peak() -> float:
    """MiB that this process has had resident at most."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / MIB if sys.platform == "darwin" else size / 1024


def faster_precision() -> str:
    """bf16 where its products of the head's shape take at most 0.9 of float32's time, as fledge's probe has it; else fp32."""
    import torch

    def seconds(dtype: torch.dtype) -> float:
        a, b = torch.randn(512, 512).to(dtype), torch.randn(16_384, 512).to(dtype)
        least = float("inf")
        for _ in range(5):
            started = time.perf_counter()
            torch.nn.functional.linear(a, b)
            least = min(least, time.perf_counter() - started)
        return least

    return "bf16" if seconds(torch.bfloat16) <= 0.9 * seconds(torch.float32) else "fp32"


def step(head: str, vocabulary: int, rows: int, precision: str) -> dict:
    """Two passes with one head; the seconds of the second are measured."""
    import torch
    import torch.nn.functional as F

    from fledge.model.decoder import Decoder
    from fledge.model.linear_cross_entropy import cross_entropy
    from fledge.recipe import ModelConfig

    baseline = peak()
    config = ModelConfig(
        hidden_size=512, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=2, intermediate_size=1408,
        max_position_embeddings=CONTEXT, tie_word_embeddings=True,
    )  # fmt: skip
    model = Decoder(config, vocabulary)
    model.init_weights(0)
    model.set_attention_backend("blocked")
    model.compute_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    tokens = torch.randint(vocabulary, (rows, CONTEXT + 1), generator=torch.Generator().manual_seed(0))
    targets, weights = tokens[:, 1:].flatten(), torch.ones(rows * CONTEXT)
    spent, loss = 0.0, torch.zeros(())
    for _ in range(2):
        started = time.perf_counter()
        hidden = model(tokens[:, :-1]).flatten(0, 1)
        if head == "fledge":
            loss = cross_entropy(hidden, model.lm_head_weight, targets, weights) / weights.sum()
        else:
            loss = F.cross_entropy(F.linear(hidden, model.lm_head_weight.to(hidden.dtype)).float(), targets)
        loss.backward()
        spent = time.perf_counter() - started
        model.zero_grad(set_to_none=True)
    return {"peak": peak(), "baseline": baseline, "seconds": spent, "loss": loss.item()}


def alone(*arguments: object) -> dict:
    """The output of this script in a fresh process. (The parent imports no torch: a child's peak starts at the parent's.)"""
    command = [sys.executable, __file__, "--one", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def compare(vocabulary: int, rows: int, precision: str, repeats: int) -> dict:
    """Both heads in turns, repeated; medians, and the ratios' range."""
    runs: dict[str, list[dict]] = {"fledge": [], "plain": []}
    for number in range(repeats):
        for head, measurements in runs.items():
            measurements.append(alone(head, vocabulary, rows, precision))
            print(
                f"{vocabulary:,} {precision} {number + 1}/{repeats} {head}: {measurements[-1]['peak']:,.0f} MiB, "
                f"{measurements[-1]['seconds']:.2f} s, loss {measurements[-1]['loss']:.5f}",
                flush=True,
            )
    ratios = [a["peak"] / b["peak"] for a, b in zip(runs["fledge"], runs["plain"], strict=True)]
    middle = {
        head: {key: statistics.median(run[key] for run in measurements) for key in measurements[0]}
        for head, measurements in runs.items()
    }
    return {
        "tokens": [rows, CONTEXT],
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "peak_mib": {head: round(values["peak"]) for head, values in middle.items()},
        "of_which_interpreter_and_torch_mib": {head: round(values["baseline"]) for head, values in middle.items()},
        "seconds": {head: round(values["seconds"], 3) for head, values in middle.items()},
        "loss": {head: round(values["loss"], 5) for head, values in middle.items()},
    }


def main() -> None:
    """Measure and print the results as one line of JSON."""
    parser = options(__doc__ or "")
    parser.add_argument("--repeats", type=int, help="processes per head and vocabulary (default 3, with --quick 1)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="default: the faster one here")
    parser.add_argument("--one", nargs="+", help="measure in this process: precision, or HEAD VOCABULARY ROWS PRECISION")
    chosen = parser.parse_args()
    if chosen.one == ["precision"]:
        return report({"precision": faster_precision()})
    if chosen.one:
        head, vocabulary, rows, precision = chosen.one
        return report(step(head, int(vocabulary), int(rows), precision))
    precision = alone("precision")["precision"] if chosen.precision == "auto" else chosen.precision
    repeats = chosen.repeats or (1 if chosen.quick else 3)
    sizes = ROWS_QUICK if chosen.quick else ROWS
    results = {vocabulary: compare(vocabulary, rows, precision, repeats) for vocabulary, rows in sizes.items()}
    report(
        {
            "ratio": max(each["ratio"] for each in results.values()),
            "precision": precision,
            "vocabularies": results,
            "quick": chosen.quick,
        }
    )


if __name__ == "__main__":
    main()

"""Draws the curves of `loss_for_compute.py` as an SVG: `python benchmarks/curves.py RESULT.json CURVES.svg`.

RESULT.json is the benchmark's last line. Bits per byte of the validation text over tokens, a line for each seed; dashed:
the final average of the slower recipe.
"""

import argparse
import json
import math
import statistics
from pathlib import Path

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 720, 380, 56, 16, 12, 44
COLOURS = {"seed_recipe": "#b4532a", "default": "#2a6fb4"}
NAMES = {"seed_recipe": "AdamW 5e-4, cosine", "default": "fledge's default"}


def bits(run: dict, name: str) -> list[tuple[float, float]]:
    """(million tokens, bits per byte) of each evaluation but the first, which is far above the rest."""
    scale = 1 / math.log(2) / run["bytes_per_token"]
    return [(tokens / 1e6, loss * scale) for tokens, loss in run["curves"][name]][1:]


def label(x: float, y: float, words: object, anchor: str = "start", more: str = "") -> str:
    """Words at a position."""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}"{more}>{words}</text>'


def level(y: float, how: str) -> str:
    """A line across the plot."""
    return f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" fill="none" {how}/>'


def draw(runs: list[dict]) -> str:
    """The picture."""
    curves = [(name, bits(run, name)) for run in runs for name in COLOURS]
    most = math.ceil(max(x for _, points in curves for x, _ in points))
    values = [y for _, points in curves for _, y in points]
    low, high = math.floor(min(values) * 10) / 10, math.ceil(max(values) * 10) / 10

    def across(x: float) -> float:
        return round(LEFT + x / most * (WIDTH - LEFT - RIGHT), 1)

    def down(y: float) -> float:
        return round(TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    middle = (TOP + HEIGHT - BOTTOM) / 2
    elements = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        label((WIDTH + LEFT) / 2, HEIGHT - 8, "million tokens", "middle"),
        label(14, middle, "bits per byte, validation", "middle", f' transform="rotate(-90 14 {middle})"'),
    ]
    for tick in range(round(low * 10), round(high * 10) + 1):
        y = down(tick / 10)
        elements += [level(y, 'stroke="#ddd"'), label(LEFT - 8, y + 4, tick / 10, "end")]
    elements += [label(across(tick), HEIGHT - BOTTOM + 18, tick, "middle") for tick in range(most + 1)]
    goal = statistics.mean(bits(run, "seed_recipe")[-1][1] for run in runs)
    elements.append(level(down(goal), 'stroke="#555" stroke-dasharray="5 4"'))
    for name, points in curves:
        line = " ".join(f"{across(x)},{down(y)}" for x, y in points)
        elements.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS[name]}" stroke-width="1.6"/>')
    for number, (name, colour) in enumerate(COLOURS.items()):
        x, y = WIDTH - 190, TOP + 20 + 20 * number
        elements += [f'<path d="M{x} {y - 4}h24" stroke="{colour}" stroke-width="2"/>', label(x + 32, y, NAMES[name])]
    return "\n".join([*elements, "</svg>"]) + "\n"


def main() -> None:
    """Draw the curves of a result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("picture", type=Path)
    chosen = parser.parse_args()
    chosen.picture.write_text(draw(json.loads(chosen.result.read_text(encoding="utf-8"))["runs"]), encoding="utf-8")


if __name__ == "__main__":
    main()

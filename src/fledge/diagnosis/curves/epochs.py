"""Figures of the training loss at borders of epochs: what falls there was learned by heart, what repeats was not shuffled."""

from itertools import pairwise
from typing import Any

import numpy as np

from fledge.diagnosis.curves.loss import has_level, training_loss
from fledge.diagnosis.curves.robust import correlation, noise
from fledge.training_log.records import Floats, Series, TrainingLog

FEWEST_POINTS = 8  # of an epoch, to see what happens at its border
PATTERN_BINS = 50


def epoch_figures(log: TrainingLog) -> dict[str, Any]:
    """The epochs that were read, and the loss at their borders and within them."""
    series = training_loss(log)
    if series is None:
        return {}
    positions = epochs_at(log, series.steps)
    if positions is None:
        return {}
    figures: dict[str, Any] = {"curve/epochs_read": float(positions[-1])}
    borders = _borders(positions)
    if has_level(log) and len(borders):
        figures |= _at_borders(series, borders) | _within(series, borders)
    return figures


def epochs_at(log: TrainingLog, steps: Floats) -> Floats | None:
    """How many epochs were read after each of these steps: from the log's own column, else from rows and batch; None where
    neither is known. A column that counts whole epochs from 1 on is the number of the epoch under way."""
    epochs = log.get("train/epoch")
    if epochs is not None and len(epochs) >= 2:
        return np.interp(steps, epochs.steps, epochs.values)
    settings = log.settings
    if settings.steps and settings.epochs:
        return steps * settings.epochs / settings.steps
    if settings.rows and settings.batch_rows:
        return steps * settings.batch_rows / settings.rows
    return None


def _borders(positions: Floats) -> np.ndarray:
    """Places of the first points of epochs but the first one; epochs of few points are left out."""
    number = np.floor(positions - 1e-6)
    places = np.flatnonzero(np.diff(number) > 0) + 1
    edges = np.concatenate([[0], places, [len(positions)]])
    lengths = np.diff(edges)
    usual = np.median(lengths[:-1]) if len(lengths) > 1 else 0
    return places if usual >= FEWEST_POINTS else places[:0]


def _at_borders(series: Series, borders: np.ndarray) -> dict[str, Any]:
    """The fall of the loss from one side of the borders to the other, beyond the fall inside of the epochs."""
    values = series.values
    length = int(np.median(np.diff(np.concatenate([[0], borders]))))
    window = int(np.clip(length // 6, 3, 50))
    drops = []
    for border in borders:
        first, last = border - 3 * window, border + 3 * window
        if first < 0 or border + window > len(values):
            continue
        drop = values[border - window : border].mean() - values[border : border + window].mean()
        before = values[first : first + window].mean() - values[border - window : border].mean()
        after = before if last > len(values) else values[border : border + window].mean() - values[last - window : last].mean()
        drops.append(drop - max(0.0, (before + after) / 4))  # these are falls over twice the distance
    if not drops:
        return {}
    error = noise(values) * np.sqrt(2.25 / window / len(drops))
    level = float(np.mean([abs(values[max(0, border - window) : border].mean()) for border in borders]))  # a loss may fall to 0
    mean = float(np.mean(drops))
    return {
        "curve/borders": len(drops),
        "curve/border_steps": [float(series.steps[border]) for border in borders[:8]],
        "curve/border_drop": mean,
        "curve/border_drop_share": mean / level if level > 0 else 0.0,
        "curve/border_z": mean / error if error > 0 else 0.0,
    }


def _within(series: Series, borders: np.ndarray) -> dict[str, Any]:
    """The rise of the loss within the epochs but the first, and how far two epochs in a row have the same bends."""
    edges = [0, *borders.tolist(), len(series)]
    pieces = [series.values[first:last] for first, last in pairwise(edges)]
    usual = float(np.median([len(piece) for piece in pieces[:-1]]))
    whole = [piece for piece in pieces if len(piece) >= 0.95 * usual]
    figures: dict[str, Any] = {}
    if len(whole) >= 2:
        third = max(2, int(usual) // 3)
        rises = [piece[-third:].mean() - piece[:third].mean() for piece in whole[1:]]
        figures["curve/epoch_rise"] = float(np.mean(rises))
    compared = whole[1:] if len(whole) >= 3 else whole
    bins = min(PATTERN_BINS, int(0.95 * usual))
    if len(compared) >= 2 and bins >= 12:
        shapes = [_shape(piece, bins) for piece in compared]
        found = float(np.mean([correlation(one, other) for one, other in pairwise(shapes)]))
        figures["curve/epoch_pattern"] = found
        figures["curve/epoch_pattern_z"] = float(
            np.arctanh(np.clip(found, -0.999, 0.999)) * np.sqrt(bins - 4) * np.sqrt(len(shapes) - 1)
        )
    return figures


def _shape(values: Floats, bins: int) -> Floats:
    """Means of so many pieces of an epoch, without the quadratic trend of the epoch."""
    edges = np.linspace(0, len(values), bins + 1).astype(int)
    means = np.add.reduceat(values, edges[:-1]) / np.diff(edges)
    places = np.linspace(-1, 1, bins)
    return means - np.polyval(np.polyfit(places, means, 2), places)

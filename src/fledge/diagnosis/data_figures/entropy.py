"""Entropies of the targets, estimated on halves that were held out, so that little data does not give too small numbers."""

import numpy as np

from fledge.diagnosis.case import Figure
from fledge.diagnosis.data_figures.hashes import hash_of
from fledge.diagnosis.data_figures.reading import ReadSequences

FEWEST_TARGETS = 400


def entropy_figures(read: ReadSequences, vocab_size: int) -> dict[str, Figure]:
    """`data/unigram_entropy` and `data/bigram_entropy` of the supervised targets, in nats a token.

    Examples are divided in two halves by their hash, so that copies are in one half. The counts of each half predict the
    targets of the other one, smoothed as by Witten and Bell (1991): a word with T kinds of followers in n places keeps
    T / (n + T) for the distribution of single tokens, and this one as much for all tokens alike.
    """
    supervised = np.flatnonzero(read.supervised)
    if len(supervised) < FEWEST_TARGETS:
        return {}
    half = _halves(read)[read.sequence_of_token[supervised]]
    target, before = read.tokens[supervised], read.tokens[supervised - 1]
    size = max(vocab_size, int(read.tokens.max()) + 1)
    losses = np.zeros(2)
    for known in (0, 1):
        is_known = half == known
        if is_known.all() or not is_known.any():
            return {}
        losses += _losses(before[is_known], target[is_known], before[~is_known], target[~is_known], size)
    unigram, bigram = (losses / len(target)).tolist()
    note = f"{len(target):,} targets, each half by the counts of the other"
    return {
        "data/unigram_entropy": Figure(unigram, "data", note=note),
        "data/bigram_entropy": Figure(bigram, "data", note=note),
    }


def _halves(read: ReadSequences) -> np.ndarray:
    """The half of each sequence, int64 [S]: sequences of one example share it, and equal examples do."""
    main = np.flatnonzero(read.is_main)
    by_example = {
        int(read.example[place]): hash_of(read.tokens[read.offsets[place] : read.offsets[place + 1]]) & 1
        for place in main.tolist()
    }
    return np.asarray([by_example.get(int(example), 0) for example in read.example], np.int64)


def _losses(before: np.ndarray, target: np.ndarray, asked_before: np.ndarray, asked: np.ndarray, size: int) -> np.ndarray:
    """The summed losses, float64 [2], of unigram and bigram counts of (before, target) on the pairs (asked_before, asked)."""
    counts = np.bincount(target, minlength=size)
    kinds, total = np.count_nonzero(counts), len(target)
    single = (counts + kinds / size) / (total + kinds)
    pairs, pair_counts = np.unique(before * size + target, return_counts=True)
    contexts = np.bincount(before, minlength=size)
    followers = np.bincount(pairs // size, minlength=size)
    wanted = asked_before * size + asked
    place = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    seen = np.where(pairs[place] == wanted, pair_counts[place], 0)
    n, kept = contexts[asked_before], followers[asked_before]
    alone = single[asked]
    double = np.where(n > 0, (seen + kept * alone) / np.maximum(1, n + kept), alone)
    return -np.asarray([np.log(alone).sum(), np.log(double).sum()])

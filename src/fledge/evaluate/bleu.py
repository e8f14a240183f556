"""BLEU-4 (Papineni et al. 2002) and chrF (Popović 2015) of answers against references, computed by sacrebleu."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from fledge.errors import missing_extra
from fledge.evaluate.intervals import Interval, percentiles, resampled_sums

CHINESE = re.compile("[\u3400-\u9fff\U00020000-\U000323af]")
CHRF_ORDER = 6  # characters of the longest runs
ScoreName = Literal["bleu", "chrf"]


@dataclass(frozen=True)
class BleuScore:
    """The score of all answers, 0 to 100, sacrebleu's signature, which says how it was computed, the number of answers, and the
    95 % interval, where it was asked for."""

    value: float
    signature: str
    answers: int
    interval: Interval | None = None

    def as_dict(self) -> dict[str, Any]:
        """The values for files and JSON output."""
        interval = {} if self.interval is None else {"interval": self.interval}
        return {"value": self.value, "signature": self.signature, "answers": self.answers, **interval}


def import_sacrebleu(purpose: str) -> Any:
    """The metrics of the library. Raises FledgeError if it is not installed."""
    try:
        from sacrebleu import metrics
    except ImportError:
        raise missing_extra("sacrebleu", "eval", purpose) from None
    return metrics


def bleu_tokenization(requested: str, expected: Sequence[str]) -> str:
    """The tokenization of sacrebleu; `auto` is `zh` where most references have Chinese characters, else `13a`, its default."""
    chinese = sum(CHINESE.search(text) is not None for text in expected)
    return ("zh" if 2 * chinese > len(expected) else "13a") if requested == "auto" else requested


def corpus_bleu(given: Sequence[str], expected: Sequence[str], tokenize: str = "auto", interval: bool = False) -> BleuScore:
    """BLEU-4 of all answers together against one reference each. `tokenize`: as in `bleu_tokenization`."""
    metric = import_sacrebleu("BLEU").BLEU(tokenize=bleu_tokenization(tokenize, expected))
    found = metric.corpus_score(list(given), [list(expected)])
    score = BleuScore(round(float(found.score), 4), str(metric.get_signature()), len(given))
    if not interval or len(given) < 2:
        return score
    # Not by sentence_score, which warns of every answer that orders without a match are not left out.
    each = [metric.corpus_score([one], [[other]]) for one, other in zip(given, expected, strict=True)]
    counts = np.array([[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in each])

    def resampled(sums: np.ndarray) -> float:
        correct, total, lengths = sums[:4].tolist(), sums[4:8].tolist(), sums[8:].tolist()
        return float(metric.compute_bleu(correct, total, *lengths, smooth_method="exp").score)

    return replace(score, interval=_percentiles(np.array([resampled(sums) for sums in resampled_sums(counts)])))


def corpus_chrf(given: Sequence[str], expected: Sequence[str], interval: bool = False) -> BleuScore:
    """chrF2 of all answers together against one reference each: F-score of runs of up to six characters, for any language."""
    metric = import_sacrebleu("chrF").CHRF()
    found = metric.corpus_score(list(given), [list(expected)])
    score = BleuScore(round(float(found.score), 4), str(metric.get_signature()), len(given))
    if not interval or len(given) < 2:
        return score
    counts = np.array([_character_counts(one, other) for one, other in zip(given, expected, strict=True)], float)
    return replace(score, interval=_percentiles(chrf_of_sums(resampled_sums(counts))))


def _percentiles(scores: np.ndarray) -> Interval | None:
    """The 95 % interval of resampled scores (Koehn 2004); None where all are equal, and tell nothing."""
    low, high = percentiles(scores)
    return (low, high) if low < high else None


def _character_counts(given: str, expected: str) -> list[int]:
    """For runs of one to six characters, white space left out: those of the answer, those of the reference, and the shared."""
    one, other = "".join(given.split()), "".join(expected.split())
    counts = []
    for n in range(1, CHRF_ORDER + 1):
        ours, theirs = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in (one, other))
        counts += [ours.total() if theirs else 0, theirs.total(), (ours & theirs).total()]
    return counts


def chrf_of_sums(sums: np.ndarray) -> np.ndarray:
    """chrF2 [...], 0 to 100, of sums of `_character_counts` [..., 18]: precision and recall are means over the lengths of runs
    that both sides have, and recall counts twice (β = 2)."""
    ours, theirs, shared = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
    both = (ours > 0) & (theirs > 0)
    lengths = np.maximum(both.sum(-1), 1)
    precision = np.divide(shared, ours, out=np.zeros_like(shared), where=both).sum(-1) / lengths
    recall = np.divide(shared, theirs, out=np.zeros_like(shared), where=both).sum(-1) / lengths
    below = 4 * precision + recall
    return 100 * np.divide(5 * precision * recall, below, out=np.zeros_like(below), where=below > 0)


@lru_cache(maxsize=8)
def _of_sentences(name: ScoreName, tokenize: str) -> Any:
    metrics = import_sacrebleu({"bleu": "BLEU", "chrf": "chrF"}[name])
    return metrics.BLEU(tokenize=tokenize, effective_order=True) if name == "bleu" else metrics.CHRF()


def sentence_score(name: ScoreName, given: str, expected: str) -> float:
    """BLEU-4 or chrF2 of one answer, 0 to 100. BLEU leaves out the lengths of n-grams that the answer is too short for (the
    library's `effective_order`)."""
    tokenize = bleu_tokenization("auto", [expected]) if name == "bleu" else ""
    return float(_of_sentences(name, tokenize).sentence_score(given, [expected]).score)

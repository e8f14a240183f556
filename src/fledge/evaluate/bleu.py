"""BLEU-4 of generated answers against references (Papineni et al. 2002), computed by sacrebleu."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fledge.errors import missing_extra

CHINESE = re.compile("[\u3400-\u9fff\U00020000-\U000323af]")


@dataclass(frozen=True)
class BleuScore:
    """The score of all answers, 0 to 100, sacrebleu's signature, which says how it was computed, and the number of answers."""

    value: float
    signature: str
    answers: int

    def as_dict(self) -> dict[str, Any]:
        """The values for files and JSON output."""
        return {"value": self.value, "signature": self.signature, "answers": self.answers}


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


def corpus_bleu(given: Sequence[str], expected: Sequence[str], tokenize: str = "auto") -> BleuScore:
    """BLEU-4 of all answers together against one reference each. `tokenize`: as in `bleu_tokenization`."""
    bleu = import_sacrebleu("BLEU").BLEU(tokenize=bleu_tokenization(tokenize, expected))
    score = bleu.corpus_score(list(given), [list(expected)])
    return BleuScore(round(float(score.score), 4), str(bleu.get_signature()), len(given))

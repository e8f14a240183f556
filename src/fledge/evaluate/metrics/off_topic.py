"""Whether an answer is about something else than its prompt.

A logistic rule of a few features, whose weights stand in `off_topic.toml`. The strongest is how much likelier the prompt makes
the answer under the model itself, than no prompt and than other prompts; overlap with the prompt and with the reference help
where a model likes its answer for no good reason. Precision and recall on labelled answers are in docs/evaluation.md.
"""

import math
import tomllib
from functools import cache
from pathlib import Path

from fledge.evaluate.metrics.answer import Answer
from fledge.evaluate.metrics.identity import asks_identity, recites_identity
from fledge.evaluate.metrics.overlap import content_words, rouge_n, shared_content
from fledge.evaluate.metrics.refusal import answer_kind
from fledge.evaluate.metrics.units import split_units

MOST_TOTAL_GAIN = 30.0  # nats
LEAST_GAIN, MOST_GAIN = -1.0, 2.0  # nats/token: what is beyond says no more
USUAL_GAIN_OVER_OTHERS = 0.63  # nats/token: the mean of the development split, where there is no other prompt


@cache
def weights() -> dict[str, float]:
    """The weights of the features, and `constant`."""
    return tomllib.loads((Path(__file__).parent / "off_topic.toml").read_text(encoding="utf-8"))


def features(answer: Answer, gain: float) -> dict[str, float]:
    """What the rule reads: `gain` and the gain over other prompts, cut to [−1, 2]; shares of the content words of the prompt in
    the answer and of the answer in the prompt; whether there is a reference, and ROUGE-1 with it, in [0, 1]; whether the answer
    recites who the model is, unasked or asked."""
    prompt, given, expected = answer.prompt, answer.given, answer.expected
    over_others = USUAL_GAIN_OVER_OTHERS if answer.gain_over_others is None else answer.gain_over_others
    return {
        "gain": min(max(gain, LEAST_GAIN), MOST_GAIN),
        "gain_over_others": min(max(over_others, LEAST_GAIN), MOST_GAIN),
        "total_gain": min(max(gain * len(split_units(given)), -MOST_TOTAL_GAIN), MOST_TOTAL_GAIN) / MOST_TOTAL_GAIN,
        "prompt_in_answer": shared_content(prompt, given),
        "answer_in_prompt": shared_content(given, prompt),
        "no_overlap": float(not content_words(prompt) & content_words(given)),
        "has_reference": float(expected is not None),
        "reference_overlap": 0.0 if expected is None else rouge_n(given, expected, 1) / 100,
        "identity_asked": float(asks_identity(prompt) and recites_identity(given)),
    }


def off_topic_probability(answer: Answer, gain: float) -> float:
    """The probability that an answer is off topic, in [0, 1]."""
    found = weights()
    total = found["constant"] + sum(found[name] * value for name, value in features(answer, gain).items())
    return 1 / (1 + math.exp(-total))


def is_off_topic(answer: Answer) -> bool | None:
    """Whether an answer is off topic; None where its gain is not known. A refusal and an honest "I don't know" are about the
    prompt; an empty answer is about nothing."""
    if not answer.given.strip():
        return True
    if answer.gain is None:
        return None
    if answer_kind(answer.given, answer.prompt) != "answer":
        return False
    return off_topic_probability(answer, answer.gain) >= 0.5

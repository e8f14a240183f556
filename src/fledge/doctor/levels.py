"""Where the figures of a log stand on their scales: what they mean before anything is judged."""

import math
from collections.abc import Callable

from fledge.diagnosis import Case
from fledge.diagnosis.facts import TOKEN_KINDS
from fledge.doctor.examination import Examination

SAME_VOCABULARY = 0.05  # by which the sizes of two vocabularies may differ: a model has rows that no token needs
FEW_POINTS = 8  # of a loss, from which its course can be judged


def levels(examination: Examination) -> list[str]:
    """Sentences on the loss beside that of a guess, the unit of the steps, scores that do not decide, and what the trainer of
    the log does with its settings."""
    case = examination.case
    found = [line for rule in RULES for line in rule(case)]
    trainer = examination.trainer
    if trainer is None:
        return found
    told = trainer.told(case.settings)
    return [*found, f"this is {trainer.name}; in its published code ({trainer.source}):", *told]


def _loss(case: Case) -> list[str]:
    """The last loss, its perplexity, and the losses of models that know nothing or only frequencies."""
    last = _last_loss(case)
    if last is None or case.kind not in TOKEN_KINDS or not 0 < last < 50:
        return []
    said = f"the last loss, {last:.3g} nats/token, is a perplexity of {math.exp(last):,.0f}"
    vocabulary = case.settings.vocab_size
    if vocabulary:
        said += f"; a uniform guess among {vocabulary:,.0f} tokens has ln({vocabulary:,.0f}) = {math.log(vocabulary):.2f}"
    lines = [said]
    unigram = case.figures.get("data/unigram_entropy")
    if unigram is not None:
        other = _of_other_tokenizer(case)
        lines.append(f"the frequencies of the targets alone reach {unigram.value:.2f} nats/token{other}")
    elif not case.log.stage:
        lines.append(
            "whether this is better than the frequencies of tokens alone is not known: data/unigram_entropy would decide, with "
            "--data FILE --tokenizer DIR"
        )
    return lines


def _of_other_tokenizer(case: Case) -> str:
    """That the tokenizer that was given is not the one of the run, so that a loss a token is another quantity."""
    given, own = case.figures.get("data/vocab_size"), case.settings.vocab_size
    if given is None or not own or abs(given.value / own - 1) < SAME_VOCABULARY:
        return ""
    return (
        f", by a tokenizer of {given.value:,.0f} tokens; the run has one of {own:,.0f}, so that the two cannot be compared: "
        "give its own"
    )


def _last_loss(case: Case) -> float | None:
    """The level at the end; of a log with few points, the last mean of an epoch where it has one."""
    if case.value("curve/loss_is_level") is False:
        return None
    losses, means = case.log.get("train/loss"), case.log.get("train/epoch_loss")
    if means is not None and (losses is None or len(losses) < FEW_POINTS):
        return float(means.values[-1])
    level = case.value("curve/last_loss")
    if level is None and losses is not None:
        level = losses.values[-max(1, len(losses) // 10) :].mean()
    return None if level is None else float(level)


def _few_points(case: Case) -> list[str]:
    """That the course of the loss cannot be judged."""
    losses = case.log.get("train/loss")
    if losses is None:
        return ["the log has no training loss, so that its course cannot be judged"]
    if len(losses) >= FEW_POINTS:
        return []
    return [f"the log has {len(losses)} points of the loss: whether it falls, rises or stands still cannot be told from them"]


def _scores(case: Case) -> list[str]:
    """BLEU is no figure from which a cause can be told."""
    bleu = case.log.get("eval/bleu")
    if bleu is None:
        return []
    return [
        f"BLEU, {float(bleu.values[-1]):.3g} at the end, decides nothing here: it is low for a model that answers well in "
        "other "
        "words too, and says nothing about why"
    ]


RULES: tuple[Callable[[Case], list[str]], ...] = (_loss, _few_points, _scores)

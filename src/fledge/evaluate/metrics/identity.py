"""Answers to other questions that recite who the model is, as models do that were trained on too many such rows."""

from fledge.evaluate.metrics.phrases import phrases


def asks_identity(prompt: str) -> bool:
    """Whether a prompt asks about the model itself."""
    return phrases("identity")["asks"].search(prompt) is not None


def recites_identity(given: str) -> bool:
    """Whether an answer says who or what the model is."""
    return phrases("identity")["recites"].search(given) is not None


def is_identity_template(prompt: str, given: str) -> bool:
    """Whether an answer says who the model is, and the prompt asks nothing like it."""
    return recites_identity(given) and not asks_identity(prompt)

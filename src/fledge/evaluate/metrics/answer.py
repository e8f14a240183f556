"""What the metrics of answers read."""

from dataclasses import dataclass

from fledge.evaluate.records import ItemResult


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A question, a model's answer, and what the answer is compared with.

    `prompt`: the user's last turn. `expected`: the reference, None where there is none. `finish_reason`: "stop" if the model
    ended the answer. `gain`: mean over the answer's tokens of log p(token | the prompt) − log p(token | an empty prompt) under
    the model that answered (`likelihood.gains`), in nats. `gain_over_others`: that mean less the largest that the answer has
    behind other prompts of its set (`likelihood.gains_over_others`). Both are None where they were not computed.
    """

    prompt: str
    given: str
    expected: str | None = None
    finish_reason: str | None = None
    gain: float | None = None
    gain_over_others: float | None = None

    @classmethod
    def of(cls, item: ItemResult) -> "Answer":
        """The answer of an item. Raises ValueError for an item of a set that generates nothing."""
        if item.given is None:
            raise ValueError(f"item {item.id} has no answer")
        return cls(prompt=item.prompt, given=item.given, expected=item.expected, finish_reason=item.finish_reason)

"""Encoding of labelled answers: each with its label, and with the answer to another prompt behind the same prompt."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from fledge.data.encoding.dialogues import encode_dialogues
from fledge.data.encoding.examples import Encoded, EncodingConfig, TokenSequence, item_batches, prompt_length
from fledge.data.parsing.items import BinaryFeedback, Item
from fledge.tokenizer import Tokenizer


def encode_feedback(items: Iterable[Item], tokenizer: Tokenizer, config: EncodingConfig) -> Iterator[Encoded]:
    """The examples of each labelled answer, in order: (the answer, an unrelated answer), both behind the answer's prompt.

    The unrelated answer is that of the item before (of the first item of a batch: the last one), as in TRL; it is cut where it
    does not fit, and never changes the prompt. An item that is alone in its batch has its own answer in both places. Raises
    TypeError for an item without a label."""
    for batch in item_batches(items):
        encoded = list(encode_dialogues(batch, tokenizer, config))
        answers = [one.examples[0][0] for one in encoded if one.examples]
        before = iter(answers[-1:] + answers[:-1])
        for item, one in zip(batch, encoded, strict=True):
            if not isinstance(item, BinaryFeedback):
                raise TypeError(f"{item.description()} has no label")
            if not one.examples:
                yield one
                continue
            answer = one.examples[0][0]
            example = (answer, behind_prompt(answer, next(before), config))
            yield replace(one, examples=(example,), label=item.desirable)


def behind_prompt(sequence: TokenSequence, other: TokenSequence, config: EncodingConfig) -> TokenSequence:
    """The prompt of a sequence with the completion of another one behind it, cut to the limits of the configuration."""
    (tokens, weights), (other_tokens, other_weights) = sequence, other
    prompt, start = prompt_length(weights), prompt_length(other_weights)
    limit = config.limit(prompt)
    joined = np.concatenate((tokens[:prompt], other_tokens[start:]))[:limit]
    return joined, np.concatenate((weights[:prompt], other_weights[start:]))[:limit]

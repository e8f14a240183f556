"""A reward model with its tokenizer: one number for an answer, the larger the better."""

from collections.abc import Sequence
from pathlib import Path

import torch

from fledge.errors import FledgeError
from fledge.generation.loading import load_model_and_tokenizer
from fledge.generation.scoring import BATCH_TOKENS, longest_first, padded
from fledge.model.adapter_files import is_adapter
from fledge.model.hf_config import read_config_json
from fledge.model.locate import locate_model
from fledge.model.protocol import LanguageModel
from fledge.run import Log, silent
from fledge.tokenizer import Tokenizer
from fledge.tokenizer.message import Messages, as_messages


class RewardModel:
    """A reward model that is ready to score, without gradients and without dropout; use `load_reward_model`.

    `path`: its directory. `tokenizer`: its own, with its chat template."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, path: Path, pad: int | None) -> None:
        """`pad`: the token that the model does not read a reward at, that of its config.json or, of an adapter,
        of its tokenizer; None: it reads at any token."""
        self.model, self.tokenizer, self.path, self.pad = model.eval(), tokenizer, path, pad

    def score(self, conversations: Sequence[Messages], tools: Sequence[str | None] | None = None) -> list[float]:
        """The reward of the last turn of each conversation, which is the assistant's. `tools`: of each conversation, a JSON
        list of the tools that the chat template describes; None: there are none.

        Raises FledgeError for a conversation that ends otherwise, or that is longer than the model's positions."""
        each = [None] * len(conversations) if tools is None else tools
        numbered = enumerate(zip(conversations, each, strict=True), 1)
        return self.score_tokens([self.encode(one, own, f"conversation {number}") for number, (one, own) in numbered])

    def encode(self, conversation: Messages, tools: str | None = None, where: str = "conversation") -> list[int]:
        """The tokens of a conversation, up to the one that ends the assistant's last turn. `where`: what errors call it.

        Raises FledgeError for a conversation that ends otherwise, TemplateError for one that the chat template refuses."""
        messages = as_messages(conversation)
        if messages[-1].role != "assistant":
            raise FledgeError(
                f"it ends with the turn of {messages[-1].role}, and a reward is for an answer",
                where=where,
                hint="let the assistant's turn be the last one",
            )
        tokens, weights = self.tokenizer.encode_conversation(messages, tools)
        return tokens[: max((index for index, weight in enumerate(weights) if weight), default=len(tokens) - 1) + 1]

    @torch.no_grad()
    def score_tokens(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """The reward of each sequence of tokens of this model's tokenizer: a prompt and its answer, up to the token that ends
        it. Equal sequences have equal rewards, to the last bit. Raises FledgeError for an empty sequence, or one that is longer
        than the model's positions."""
        for number, sequence in enumerate(sequences, 1):
            if not 0 < len(sequence) <= self.model.max_positions:
                raise FledgeError(
                    f"it has {len(sequence):,} tokens, the reward model has {self.model.max_positions:,} positions",
                    where=f"sequence {number}",
                    hint="shorten prompt or answer, or train the reward model with a larger model.max_position_embeddings",
                )
        each = [tuple(sequence) for sequence in sequences]
        rewards: dict[tuple[int, ...], float] = {}  # the last bits depend on what else is in a batch, so each is read once
        for batch in longest_first({sequence: len(sequence) for sequence in each}, BATCH_TOKENS):
            rewards.update(zip(batch, self._score_batch(batch), strict=True))
        return [rewards[sequence] for sequence in each]

    def _score_batch(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """The rewards of sequences that are read together."""
        device = self.model.device
        inputs, _ = padded(sequences, device)
        last = torch.tensor([self._last(sequence) for sequence in sequences])
        hidden = self.model(inputs)
        return self.model.rewards(hidden[torch.arange(len(sequences), device=device), last.to(device)]).tolist()

    def _last(self, sequence: Sequence[int]) -> int:
        return max((index for index, token in enumerate(sequence) if token != self.pad), default=0)


def load_reward_model(path: str | Path, log: Log = silent, device: str | None = None) -> RewardModel:
    """Load the reward model of a run, a stage, a checkpoint, a model directory or an adapter. `device`: cpu or cuda; None: a
    GPU if there is one.

    Raises FledgeError if there is none, if it is a language model, or if its tokenizer does not fit it."""
    folder = locate_model(str(path), log)
    model, tokenizer = load_model_and_tokenizer(folder, log, purpose="rewards")
    # an adapter has been trained with its tokenizer's padding token, and the config.json of its base may name another one
    pad = tokenizer.pad if is_adapter(folder) else read_config_json(folder).get("pad_token_id")
    model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return RewardModel(model, tokenizer, folder, pad)

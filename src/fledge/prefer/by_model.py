"""A reward model as the rater: the reward of each answer behind its prompt."""

from collections.abc import Sequence

from fledge.data.parsing.left_out import Counts
from fledge.errors import FledgeError
from fledge.generation import RewardModel, load_reward_model
from fledge.prefer.answers import Answer, PromptAnswers
from fledge.prefer.sampling import model_weights
from fledge.prefer.scored import ScoreRater, Scores
from fledge.run import Log
from fledge.tokenizer import Message
from fledge.tokenizer.message import TemplateError

NAME = "reward"  # of the one part of a score


def reward_model_rater(model: str, log: Log) -> ScoreRater:
    """A rater by the reward model of a run, a stage, a checkpoint, a model directory or an adapter. Answers that it cannot read
    have no score and are told.

    Raises FledgeError if there is none, or if it is a language model or has no chat template."""
    loaded = load_reward_model(model, log)
    if loaded.tokenizer.template.name == "none":
        raise FledgeError(
            "this reward model has no chat template: it reads no prompt with an answer", where=model,
            hint="train it on conversations, with a stage of kind reward",
        )  # fmt: skip

    def score(prompts: Sequence[PromptAnswers]) -> list[dict[str, Scores]]:
        left_out, readable = Counts(), list[tuple[PromptAnswers, Answer, list[int]]]()
        for asked in prompts:
            for answer in asked.answers:
                tokens = _tokens(loaded, asked, answer, left_out)
                readable += [] if tokens is None else [(asked, answer, tokens)]
        for problem in left_out.lines():
            log(f"not scored: {problem}")
        scores: dict[str, dict[str, Scores]] = {asked.id: {} for asked in prompts}
        values = loaded.score_tokens([tokens for *_, tokens in readable])
        for (asked, answer, _), value in zip(readable, values, strict=True):
            scores[asked.id][answer.id] = Scores(value, {NAME: value})
        return list(scores.values())

    return ScoreRater(
        settings={"weights": model_weights(loaded.path, []), "tokenizer": loaded.tokenizer.fingerprint()},
        score=score,
        needs_reference=False,
    )


def _tokens(loaded: RewardModel, asked: PromptAnswers, answer: Answer, left_out: Counts) -> list[int] | None:
    """The tokens of a prompt with an answer; None if the model cannot read them, which is counted."""
    try:
        tokens = loaded.encode([*asked.prompt.turns, Message("assistant", answer.text)], asked.prompt.tools, asked.where)
    except TemplateError as error:
        left_out.add(error.reason, asked.where, error.what)
        return None
    room = loaded.model.max_positions
    if len(tokens) > room:
        left_out.add(f"too long: the reward model has {room:,} positions", asked.where, f"{len(tokens):,} tokens")
        return None
    return tokens

"""Generation: an engine that decodes requests together, sampling, the key-value cache, packed weights, streamed text."""

from fledge.generation.engine import Engine
from fledge.generation.loading import SwitchableEngine, find_adapter, find_adapters, load_engine
from fledge.generation.request import Completion, FinishReason, PromptTooLongError, TokenOutput, check_prompt
from fledge.generation.reward_model import RewardModel, load_reward_model
from fledge.generation.sampling import SamplingParams
from fledge.generation.scoring import score_tokens
from fledge.generation.text_stream import TextStream, decode_stream

__all__ = [
    "Completion",
    "Engine",
    "FinishReason",
    "PromptTooLongError",
    "RewardModel",
    "SamplingParams",
    "SwitchableEngine",
    "TextStream",
    "TokenOutput",
    "check_prompt",
    "decode_stream",
    "find_adapter",
    "find_adapters",
    "load_engine",
    "load_reward_model",
    "score_tokens",
]

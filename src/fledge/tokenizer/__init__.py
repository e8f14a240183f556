"""Train or load a tokenizer, and turn conversations into tokens and weights with one chat template."""

from fledge.tokenizer.template import ChatTemplate, Message, TemplateError, TextSegment
from fledge.tokenizer.tokenizer import Tokenizer, load_tokenizer
from fledge.tokenizer.training import train_tokenizer

__all__ = ["ChatTemplate", "Message", "TemplateError", "TextSegment", "Tokenizer", "load_tokenizer", "train_tokenizer"]

"""Tokenizers: training, loading, and encoding conversations as tokens with loss weights."""

from fledge.tokenizer.loading import load_tokenizer
from fledge.tokenizer.template import ChatTemplate, Message, TemplateError, TextSegment
from fledge.tokenizer.tokenizer import Tokenizer
from fledge.tokenizer.training import train_tokenizer

__all__ = ["ChatTemplate", "Message", "TemplateError", "TextSegment", "Tokenizer", "load_tokenizer", "train_tokenizer"]

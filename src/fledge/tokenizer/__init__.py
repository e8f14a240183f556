"""Train or load a tokenizer, and turn conversations into tokens and weights with one chat template."""

from fledge.tokenizer.template import ChatTemplate, Message, Piece, TemplateError
from fledge.tokenizer.tokenizer import Tokenizer, load_tokenizer
from fledge.tokenizer.training import train_tokenizer

__all__ = ["ChatTemplate", "Message", "Piece", "TemplateError", "Tokenizer", "load_tokenizer", "train_tokenizer"]

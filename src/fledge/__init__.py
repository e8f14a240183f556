"""fledge raises small language models: raw text to a model one can talk to."""

__version__ = "0.1.0"

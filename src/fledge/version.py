"""The version of fledge."""

__version__ = "0.1.0"

"""Helpers that several test modules share: tiny models, small runs, sources of data, processes to kill."""

"""Malformed data files of every format, each with the outcome that reading it must have."""

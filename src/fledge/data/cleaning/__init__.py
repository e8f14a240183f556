"""Cleaning of texts, and rows to drop: languages, duplicates, contamination."""

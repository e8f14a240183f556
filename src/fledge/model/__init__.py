"""The native decoder, its files, its head and its generation."""

"""Figures of training data."""

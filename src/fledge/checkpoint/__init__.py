"""Checkpoints: written whole or not at all, verified by their manifest, saved beside training."""

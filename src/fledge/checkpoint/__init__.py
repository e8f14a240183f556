"""Checkpoints: state of training, writing, verifying, pruning, and writing while training continues."""

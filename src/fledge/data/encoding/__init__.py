"""Encoding of conversations and documents as tokens and loss weights: examples, truncation, augmentation."""

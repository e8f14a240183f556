"""From conversations and documents to tokens and loss weights: examples, truncation, augmentation."""

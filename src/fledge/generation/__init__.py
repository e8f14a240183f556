"""Generation: an engine that decodes requests together, sampling, the key-value cache, packed weights."""

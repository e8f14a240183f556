"""Datasets of encoded examples, up to batches: mixing, packing, the packed dataset."""

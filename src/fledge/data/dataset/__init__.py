"""From encoded examples to batches: storage, packing, mixing, the packed dataset."""

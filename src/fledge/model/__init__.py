"""Language models: the native decoder with its attention, experts, head and files, and the bridge to transformers."""

"""Optimizers: AdamW, 8-bit AdamW, Muon, steps that can be skipped, the average of the weights, the fp16 gradient scaler."""

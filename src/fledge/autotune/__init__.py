"""Autotune: precision, attention backend, torch.compile and threads, chosen by timing on this machine."""

"""How to compute on this machine: precision, attention backend, torch.compile and threads, chosen by timing."""

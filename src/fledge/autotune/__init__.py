"""How to compute on this machine, decided by timing a piece of the work: precision, attention backend, torch.compile, threads."""

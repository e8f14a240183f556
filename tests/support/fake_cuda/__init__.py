"""CUDA without a GPU: tensors that have shapes, dtypes and a device but no values, and a list of every wait of the host for it.

`stub.py` lets a CPU build of PyTorch run autograd on such tensors, `watch.py` counts the waits, `scenarios.py` runs pieces of
fledge under both and prints what it saw. It runs in a process of its own, because the stub changes the whole of PyTorch.
"""

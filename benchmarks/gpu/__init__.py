"""The checks of `benchmarks/on_gpu.py`."""

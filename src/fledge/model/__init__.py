"""The native decoder: its blocks, attention, mixture of experts, head, cost model and files."""

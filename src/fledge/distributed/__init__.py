"""Processes that train one model together: process groups, DDP, FSDP2."""

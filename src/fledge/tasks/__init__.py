"""Makers of data for two tasks on emission data, with names, spellings and combinations that training never shows."""

from fledge.tasks.builder import TASKS, make

__all__ = ["TASKS", "make"]

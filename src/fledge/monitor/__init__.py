"""Monitoring of a run: events, guards, timers, the size of updates."""

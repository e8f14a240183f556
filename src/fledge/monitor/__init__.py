"""What watches a run: events, guards, timers, the size of updates."""

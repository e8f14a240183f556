"""The trainer: one loop for every kind of stage, its train step, batches, validation and hooks."""

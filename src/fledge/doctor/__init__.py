"""The doctor of training runs: what is wrong, how it is known, what to change, and the proof."""

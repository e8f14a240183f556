"""From sources to tokens in a build directory: shards, phases, executors."""

"""The build of a stage's data, from sources to tokens in a build directory: shards, phases, executors."""

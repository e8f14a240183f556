"""What a recipe will take, before it runs: work, memory, time and money, here or on a device that is not at hand."""

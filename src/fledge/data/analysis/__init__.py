"""What is in the data, and whether training on it could mean anything: numbers, no presentation."""

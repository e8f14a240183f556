"""Statistics of the data, and checks of whether training on it makes sense: numbers, no presentation."""

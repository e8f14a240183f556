"""What is mended in a text, and which rows are left out: languages, duplicates, contamination."""

"""What a row means: its schema, its turns, its item."""

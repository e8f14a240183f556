"""Files of many formats, encodings and compressions as rows with their place."""

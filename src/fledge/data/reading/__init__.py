"""Reading of files in many formats, encodings and compressions as rows with their location."""

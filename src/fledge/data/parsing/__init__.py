"""Parsing of rows: columns, turns, schemas, and the items that rows represent."""

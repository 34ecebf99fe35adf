"""A sweep: many runs from one file, several at a time."""

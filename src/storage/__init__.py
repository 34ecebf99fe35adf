"""Files that are written whole or not at all, and tensor files with a header."""

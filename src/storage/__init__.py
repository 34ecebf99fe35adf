"""Atomic writes, and tensor files with a header."""

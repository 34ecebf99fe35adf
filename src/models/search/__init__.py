"""Nearest rows: the one place where N x M distances are formed."""

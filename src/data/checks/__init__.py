"""Checks of a dataset before a run: its contents and its problems."""

"""Mechanisms that make a bank from noisy sums."""

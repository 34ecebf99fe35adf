"""Greedy farthest-first selection of a coreset, exact and at matrix-product speed."""

"""Exact greedy selection of coresets (farthest-first traversal), at matrix-product speed."""

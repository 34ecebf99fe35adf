"""Differential privacy: queries to images, noise, accounting, and a ledger of what was released."""

"""Audits of finished runs: what a bank gives away, and whether its privacy claim holds."""

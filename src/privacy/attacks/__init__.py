"""Attacks on a released bank, and audits of a privacy claim."""

"""Attacks on a released bank, and lower bounds on the ε of a mechanism."""

"""Several runs: a grid or list of settings, run side by side."""

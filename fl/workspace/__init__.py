"""The run directory while a run goes on: lock, partition, scores, progress."""

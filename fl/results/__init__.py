"""What a run leaves: metrics.json, scores, baselines, the run directory."""

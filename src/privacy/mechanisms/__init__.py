"""Private mechanisms: each makes a bank from noisy sums."""

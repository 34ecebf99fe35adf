"""What a release of private data costs, how it is kept within a budget, and how that is audited."""

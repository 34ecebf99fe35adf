"""Settings: their meaning and bounds, where they come from, what goes together."""

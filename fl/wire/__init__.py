"""The wire format: the only place that knows what messages carry."""

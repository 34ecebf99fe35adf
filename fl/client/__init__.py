"""A client: its node, what it selects, what it keeps between messages."""

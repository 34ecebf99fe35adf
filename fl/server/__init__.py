"""The server: the strategy, its exchanges with the clients, its state and checkpoint."""

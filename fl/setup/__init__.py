"""From settings to the model, the data and the partition."""

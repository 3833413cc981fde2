"""Where a model uses its parameters."""

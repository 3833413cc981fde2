"""Which score to trust for a model, asked of its own ID images."""

"""Which parameters are meant: the last layer, the blocks and stages, and what reaches them."""

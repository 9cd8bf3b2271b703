"""Masks on weights that move while training: when, how much, in which shape, by what score. Graph and optimizer are elsewhere."""

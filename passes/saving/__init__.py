"""Which tensors of a graph torch would keep for backward, and what can be kept instead."""

"""Pricing of graph nodes: what runs when a node runs, forward and backward, as workloads of the cost model."""

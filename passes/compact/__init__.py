"""Dead filters and channels of a plain model: found through the graph's dependencies, and removed from the modules."""

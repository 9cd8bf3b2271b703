"""fxsparse: a graph compiler on torch.fx that makes training sparse and small."""

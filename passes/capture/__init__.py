"""Capture: from an nn.Module to torch.fx graphs that share its parameters, buffers and modes."""

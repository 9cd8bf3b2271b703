"""Few-bit codes of tensors: how they are packed, rounded and unpacked, in plain PyTorch. Nothing here is an operator."""

"""Native kernels for the CPU, in C, and how they are found and called. Without them the operators run their reference in PyTorch."""

"""The choice of native kernels and of the memory order that they want, region by region."""

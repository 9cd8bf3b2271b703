"""Settings of the whole test suite."""

from hypothesis import settings

# No deadline: a machine shared with others is slow now and then. Derandomized: what passes once passes again.
settings.register_profile("fxsparse", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("fxsparse")

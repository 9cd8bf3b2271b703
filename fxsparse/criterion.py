"""What a user derives from to drop or grow weights by a score of their own."""

from fxsparse.passes.masks.criteria import Criterion, Weight

__all__ = ["Criterion", "Weight"]

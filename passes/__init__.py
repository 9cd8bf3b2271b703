"""Graph passes: capture, sites, rewrites, verification, and the custom ops that they insert."""

if __name__ != "fxsparse.passes":
    raise ImportError(f"import 'fxsparse.passes' instead of {__name__!r}: a second copy of its classes would not match the first")

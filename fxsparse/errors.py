"""Every error that fxsparse raises on purpose. A message names what was refused, where, and what to do."""


class FxSparseError(Exception):
    """Base of all errors of fxsparse."""


class PolicyError(FxSparseError, ValueError):
    """A policy or one of its techniques cannot be applied; the model was not touched."""


class TraceError(FxSparseError):
    """The model, or what was passed to it, cannot be captured."""


class PassError(FxSparseError, RuntimeError):
    """A graph pass could not run, or did not do what it claimed."""


class VerificationError(PassError):
    """A rewritten graph breaks a rule, or a compiled model differs from its original."""


class ExportError(FxSparseError):
    """A compiled model cannot be exported."""


class CostError(FxSparseError, ValueError):
    """A cost was asked for that cannot be computed."""


class NumericalError(FxSparseError, ArithmeticError):
    """A weight holds NaN or inf where a threshold must be selected."""

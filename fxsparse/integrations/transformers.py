"""A callback for transformers' Trainer: schedules advance with its optimizer. Needs ``pip install 'fxsparse[transformers]'``.

>>> trainer = transformers.Trainer(model=compiled, ..., callbacks=[FxSparseCallback()])
"""

from __future__ import annotations

from typing import Any

from ..attach import Attachment
from ..errors import FxSparseError
from .attaching import attach_all, sparsity_of

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    raise FxSparseError(f"the callback needs transformers; {error.name!r} is not installed: pip install 'fxsparse[transformers]'") from None


class FxSparseCallback(TrainerCallback):  # type: ignore[misc]
    """Attaches the Trainer's optimizer to every compiled model in its model, from the start of training to its end.

    Args:
        log_as: name under which the fraction of zero weights is added to what the Trainer prints and to ``state.log_history``;
            empty adds nothing.
    """

    def __init__(self, log_as: str = "sparsity") -> None:
        self.log_as = log_as
        self._handles: list[Attachment] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any) -> None:
        """Attaches."""
        self._remove()
        self._handles = attach_all(model, [optimizer])

    def on_log(self, args: Any, state: Any, control: Any, model: Any = None, logs: Any = None, **kwargs: Any) -> None:
        """Adds the sparsity to the log."""
        if self.log_as and logs is not None and self._handles:
            logs[self.log_as] = sparsity_of(model)
            state.log_history[-1][self.log_as] = logs[self.log_as]  # it was written down before callbacks are asked

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Detaches."""
        self._remove()

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

"""A callback for Lightning: schedules advance with the trainer's optimizers. Needs ``lightning`` (``pip install 'fxsparse[lightning]'``).

>>> trainer = lightning.Trainer(callbacks=[FxSparseCallback()])
"""

from __future__ import annotations

from typing import Any

from ..attach import Attachment
from ..errors import FxSparseError
from .attaching import attach_all, compiled_models, sparsity_of

try:
    from lightning.pytorch.callbacks import Callback
except ModuleNotFoundError as error:  # the name under which older projects have it
    try:
        from pytorch_lightning.callbacks import Callback
    except ModuleNotFoundError:
        raise FxSparseError(f"the callback needs Lightning; {error.name!r} is not installed: pip install 'fxsparse[lightning]'") from None


class FxSparseCallback(Callback):  # type: ignore[misc]
    """Attaches the optimizers to every compiled model in the LightningModule, from the start of training to its end.

    Masks, schedules and counters are in the module's state_dict, and so in Lightning's checkpoints.

    Args:
        log_as: name under which the fraction of zero weights is logged after each epoch; empty logs nothing.
    """

    def __init__(self, log_as: str = "sparsity") -> None:
        super().__init__()
        self.log_as = log_as
        self._handles: list[Attachment] = []

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Says at once if there is nothing to do."""
        compiled_models(pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attaches; the optimizers are made, and a checkpoint is loaded."""
        self._remove()
        self._handles = attach_all(pl_module, trainer.optimizers)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Logs the sparsity."""
        if self.log_as:
            pl_module.log(self.log_as, sparsity_of(pl_module), rank_zero_only=True)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Detaches."""
        self._remove()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Detaches."""
        self._remove()

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

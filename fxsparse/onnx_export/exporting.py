"""What a compiled model offers to those who want it without fxsparse: ``finalize`` and ``export_onnx``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

if TYPE_CHECKING:
    from ..compiled_model import CompiledModel
    from .export import ExportResult


class Exporting:
    """The two methods, for CompiledModel to inherit."""

    def finalize(
        self, *, weights: str = "dense", compact: bool = False, example_inputs: Sequence[Any] | torch.Tensor | None = None
    ) -> nn.Module:
        """A plain nn.Module in eval mode, with the sparse weights that this model's eval mode multiplies with, bit for bit.

        It is of the original's class, shares no tensor with this model, and knows nothing of fxsparse.

        Args:
            weights: "dense"; "csr" or "semi_structured" for the sparse weights of nn.Linear modules as sparse tensors of torch.
            compact: remove the filters and channels that are dead, where nothing else depends on them; outputs are equal to rounding.
            example_inputs: for ``compact``; None takes the shapes that the model was compiled with.

        Raises:
            ExportError: a weight is read both sparse and dense under one name, or torch does not run that kind of sparse tensor here.
        """
        from .plain import plain_module

        return plain_module(cast("CompiledModel", self), weights=weights, compact=compact, example_inputs=example_inputs)

    def export_onnx(
        self,
        path: str | os.PathLike[str],
        example_inputs: Sequence[Any] | torch.Tensor | None = None,
        *,
        sparse: bool | str = True,
        metadata: bool = True,
        keep_nodes: bool = False,
        compact: bool = False,
        fold_norms: bool = False,
        opset: int | None = None,
    ) -> ExportResult:
        """Writes what eval mode computes as an ONNX file of standard operators. The model stays as it is, in whatever mode.

        Args:
            path: written whole or not at all. Weights beyond 2 GB go to a file of its own beside it.
            example_inputs: None takes the shapes that the model was compiled with. The first size stays free.
            sparse: store sparse weights as sparse tensors where that takes fewer bytes: True or "constant" as Constant nodes, which every
                check of onnx accepts; "initializer" as sparse_initializer; False: all weights dense.
            metadata: note sites, densities and costs at the nodes, and the policy and the report at the model (``fxsparse inspect``).
            keep_nodes: show what fxsparse inserts as functions of the domain "fxsparse", whose bodies are standard operators.
            compact: as in ``finalize``.
            fold_norms: fold batch norms into the convolutions before them, as torch's own exporter does. The file is smaller by three
                numbers a channel, and ``from_onnx`` can restore policy and masks from it, but no weights.
            opset: of ONNX's own domain; None takes torch's choice.

        Raises:
            ExportError: the path cannot be written, the model cannot be captured whole, ONNX lacks an operator (named, with the model's
                line), or the extra "onnx" is not installed.
        """
        from .export import export_onnx

        return export_onnx(
            cast("CompiledModel", self),
            path,
            example_inputs,
            sparse=sparse,
            metadata=metadata,
            keep_nodes=keep_nodes,
            compact=compact,
            fold_norms=fold_norms,
            opset=opset,
        )

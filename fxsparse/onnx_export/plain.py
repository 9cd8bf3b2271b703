"""``compiled.finalize``: the plain module, compacted or with sparse tensors if wanted."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import ExportError
from ..techniques import closest
from .compacting import compacted
from .example import call_form
from .finalize import finalize

if TYPE_CHECKING:
    from ..compiled_model import CompiledModel

LAYOUTS = ("dense", "csr", "semi_structured")
_ROWS = 64


def plain_module(
    model: CompiledModel, *, weights: str = "dense", compact: bool = False, example_inputs: Sequence[Any] | torch.Tensor | None = None
) -> nn.Module:
    """The model without fxsparse; see ``CompiledModel.finalize``."""
    if weights not in LAYOUTS:
        raise ExportError(f"weights is {weights!r}{closest(weights, LAYOUTS)}; expected one of {', '.join(map(repr, LAYOUTS))}")
    final = finalize(model)
    module = final.module
    if compact:
        module = compacted(module, final.sites, call_form(example_inputs, model.example)).module
    if weights != "dense":
        _make_sparse(module, {name for site in final.sites.values() for name in site.names}, weights)
    return module


def _make_sparse(module: nn.Module, names: set[str], layout: str) -> None:
    """Gives the nn.Linear modules among the sparse sites tensors of a sparse layout, in place.

    Raises: ExportError if there is none, or torch does not run them.
    """
    linear = {name: part for name, part in module.named_modules() if type(part) is nn.Linear and f"{name}.weight" in names}
    if not linear:
        raise ExportError(
            f"weights={layout!r}: torch multiplies with sparse tensors in nn.Linear alone, and no nn.Linear of this model has a sparse "
            'weight; use weights="dense"'
        )
    made: dict[int, nn.Parameter] = {}
    for name, part in linear.items():
        if id(part.weight) not in made:
            try:
                made[id(part.weight)] = _sparse_parameter(part.weight, layout)
            except (RuntimeError, NotImplementedError, ValueError) as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise ExportError(
                    f"weights={layout!r}: torch does not run that for {name + '.weight'!r} "
                    f"({'x'.join(map(str, part.weight.shape))}, {part.weight.dtype}, {part.weight.device}): {reason}"
                ) from error
        part.weight = made[id(part.weight)]


def _sparse_parameter(weight: torch.Tensor, layout: str) -> nn.Parameter:
    """The weight in a sparse layout, tried once in a product of two and of three dimensions."""
    dense = weight.detach()
    make = torch.Tensor.to_sparse_csr if layout == "csr" else torch.sparse.to_sparse_semi_structured
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch says of each kind that it is new
        made = make(dense.contiguous())
        for rows in ((_ROWS,), (2, _ROWS)):
            nn.functional.linear(torch.zeros(*rows, dense.shape[1], dtype=dense.dtype, device=dense.device), made)
    return nn.Parameter(made, requires_grad=False)

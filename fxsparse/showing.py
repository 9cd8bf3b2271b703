"""What a compiled model offers to those who look rather than read: ``save_html``, and its face in a notebook."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from fxsparse.cost_model.accelerator import Accelerator

if TYPE_CHECKING:
    from .compiled_model import CompiledModel
    from .cost_report import CostReport


class Showing:
    """The two methods, for CompiledModel to inherit."""

    def save_html(
        self,
        path: str | os.PathLike[str],
        accelerator: str | Accelerator | None = None,
        *,
        compare: CompiledModel | CostReport | Mapping[str, CompiledModel | CostReport] | None = None,
        title: str | None = None,
        convention: str = "exact",
        batch_size: int | None = None,
        density: str = "target",
    ) -> None:
        """Writes one HTML file that needs no network: the graph before and after, layers, roofline, memory, densities, comparisons.

        Args:
            path: written whole or not at all.
            accelerator: a shipped name, a file, an Accelerator; None takes the one that the model was compiled for, if any.
            compare: another compiled model or cost report, or several by name; the dense model is always compared with.
            title: None takes the model's class name. convention, batch_size, density: see ``cost``.

        Raises:
            FxSparseError: the path cannot be written, or the extra "report" is not installed.
            CostError: the model was compiled without example inputs, an argument is unknown, or what is compared does not fit.
        """
        from .html_report import save_page

        options: dict[str, Any] = {"title": title, "convention": convention, "batch_size": batch_size, "density": density}
        save_page(cast("CompiledModel", self), path, accelerator=accelerator, compare=compare, **options)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from .html_report import notebook_page

        return notebook_page(cast("CompiledModel", self))

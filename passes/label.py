"""Says on every contraction node of a captured model which site it multiplies with."""

from __future__ import annotations

from collections.abc import Mapping

from . import meta
from .capture.capture import Capture
from .contractions import find_contractions
from .sites import graphs_in_order


def label_sites(captured: Capture, names: Mapping[str, str]) -> None:
    """Writes ``site`` and ``role`` to the metadata of each contraction.

    Args:
        names: the site of each parameter, by the parameter's qualified name.
    """
    for path, _, gm in graphs_in_order(captured):
        for operands in find_contractions(gm):
            target = operands.parameter
            site = names.get(f"{path}.{target}" if path else target)
            if site is not None:
                meta.write(operands.node, site=site, role="contraction")

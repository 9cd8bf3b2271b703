"""Facts about nodes, kept under the one metadata key that survives torch.export. They are replaced, never mutated."""

from __future__ import annotations

import json
from typing import Any

from torch import fx

KEY = "fxsparse"


def read(node: fx.Node) -> dict[str, Any]:
    """What fxsparse knows about a node: ``site``, ``role``, ``cost``; empty if nothing."""
    facts: dict[str, Any] = node.meta.get("custom", {}).get(KEY, {})
    return facts


def write(node: fx.Node, **facts: Any) -> None:
    """Adds facts to a node's own, in new dictionaries.

    Raises: TypeError if a fact is not JSON-able.
    """
    merged = {**read(node), **facts}
    json.dumps(merged)
    node.meta["custom"] = {**node.meta.get("custom", {}), KEY: merged}

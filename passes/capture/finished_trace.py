"""What is done at the end of tracing: to the result that the graph returns, and to the graph."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NoReturn

from torch import fx


def refuse_own_containers(result: Any, refuse: Callable[[str], NoReturn]) -> None:
    """Refuses a dictionary of a class of its own, which a traced graph would return as a plain one."""
    if issubclass(type(result), fx.Proxy):
        return
    if isinstance(result, dict):
        if type(result) is not dict:
            refuse(f"it returns a {type(result).__name__}")
        for part in result.values():
            refuse_own_containers(part, refuse)
    elif isinstance(result, (tuple, list)):
        for part in result:
            refuse_own_containers(part, refuse)


def clean(graph: fx.Graph) -> None:
    """Removes what only tracing needed, and reads of attributes, shapes and items that nothing uses."""
    graph._tracer_cls = None
    for node in graph.nodes:
        node.type = None  # an annotation that copies could not keep
        node.meta.pop("is_wrapped", None)  # else the generated code would wrap the function for all later tracing
    _drop_unused_readings(graph)


def _drop_unused_readings(graph: fx.Graph) -> None:
    """Removes reads of attributes, shapes and items that nothing uses; they have no effect."""
    for node in reversed(list(graph.nodes)):
        asks_size = node.op == "call_method" and node.target == "size"
        is_reading = asks_size or node.op == "get_attr" or node.target in (getattr, operator.getitem)
        if is_reading and not node.users:
            graph.erase_node(node)

"""What fxsparse inserts, as functions."""

from typing import Any


def show_nodes(proto: Any, model: Any, sites: Any, consumers: Any) -> Any:
    raise NotImplementedError

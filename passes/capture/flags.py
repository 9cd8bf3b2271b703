"""``training`` flags while a module is recorded: live where they are passed on, noted where Python branches on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class TrainingFlag(int):
    """A flag that tells when it is asked."""

    path: str
    _branched: Callable[[str, bool], None]

    @classmethod
    def of(cls, flag: bool, path: str, branched: Callable[[str, bool], None]) -> TrainingFlag:
        """The flag of the module at ``path``."""
        made = cls(bool(flag))
        made.path = path
        made._branched = branched
        return made

    def __bool__(self) -> bool:
        self._branched(self.path, int(self) == 1)
        return int(self) == 1

    def __eq__(self, other: object) -> bool:
        return bool(self) == other

    def __ne__(self, other: object) -> bool:
        return bool(self) != other

    def __hash__(self) -> int:
        return hash(bool(self))

    def __and__(self, other: Any) -> Any:
        return bool(self) & other

    def __or__(self, other: Any) -> Any:
        return bool(self) | other

    def __repr__(self) -> str:
        return repr(bool(self))


def plain(value: Any) -> Any:
    """Arguments with every flag in them as a bool."""
    if isinstance(value, TrainingFlag):
        return int(value) == 1
    if type(value) is tuple:
        return tuple(plain(item) for item in value) if any(isinstance(item, TrainingFlag) for item in value) else value
    if type(value) is dict:
        return {key: plain(item) for key, item in value.items()} if any(isinstance(v, TrainingFlag) for v in value.values()) else value
    return value

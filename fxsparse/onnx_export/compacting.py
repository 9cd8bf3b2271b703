"""A finalised module without its dead filters and channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from .example import CallForm
from .finalize import FinalSite


@dataclass(frozen=True)
class Compacted:
    """A module, what is kept of each sparse site in it, and the channels removed by layer."""

    module: nn.Module
    kept: dict[str, np.ndarray[Any, Any]]
    removed: dict[str, int]


def compacted(module: nn.Module, sites: Mapping[str, FinalSite], form: CallForm) -> Compacted:
    raise NotImplementedError

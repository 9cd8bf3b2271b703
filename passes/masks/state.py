"""What a regime remembers, in buffers: how many steps there were, what is kept, and what its steps have multiplied."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from fxsparse.errors import PolicyError

from ..host_buffers import HostBuffers
from .specs import RegimeSpec


class RegimeState(HostBuffers):
    """The counters of one regime, all on the CPU; vectors have an entry for each site of the regime, in its order.

    Buffers:
        steps: int64, optimizer steps taken. dense_steps: those of them with a dense gradient.
        growing: bool, whether the next step needs a dense gradient.
        kept: int64 vector, weights that each mask keeps. kept_sum: its sum over all steps; sparse_kept_sum: over the steps
            without a dense gradient.
        fingerprint: int64, of the technique and its sites; a checkpoint of another is refused.
    """

    on_host = frozenset({"steps", "dense_steps", "growing", "kept", "kept_sum", "sparse_kept_sum", "fingerprint"})

    steps: Tensor
    dense_steps: Tensor
    growing: Tensor
    kept: Tensor
    kept_sum: Tensor
    sparse_kept_sum: Tensor
    fingerprint: Tensor

    def __init__(self, spec: RegimeSpec, kept: list[int]) -> None:
        super().__init__()
        self.spec = spec
        self.expected = fingerprint_of(spec)
        for name in ("steps", "dense_steps"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self.register_buffer("growing", torch.tensor(spec.wants_dense_gradient(1)))
        self.register_buffer("kept", torch.tensor(kept, dtype=torch.int64))
        for name in ("kept_sum", "sparse_kept_sum"):
            self.register_buffer(name, torch.zeros(len(kept), dtype=torch.int64))
        self.register_buffer("fingerprint", torch.tensor(self.expected, dtype=torch.int64))

    def advance(self) -> int:
        """Counts a step that was taken with the masks as they are. Returns its number, from 1 on."""
        self.steps.add_(1)
        self.kept_sum.add_(self.kept)
        if bool(self.growing):
            self.dense_steps.add_(1)
        else:
            self.sparse_kept_sum.add_(self.kept)
        return int(self.steps)

    def require_own(self, fingerprint: int) -> None:
        """Raises PolicyError if a fingerprint is that of another technique, or of other sites."""
        if fingerprint != self.expected:
            settings = ", ".join(f"{name}={setting!r}" for name, setting in self.spec.settings.items() if name != "technique")
            raise PolicyError(
                f"the checkpoint was saved under another policy: its masks are not those of {self.spec.technique}({settings}) on these "
                f"{len(self.spec.sites)} weights; compile the model with the policy that the checkpoint was trained with"
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        found = state_dict.get(f"{prefix}fingerprint")
        if isinstance(found, Tensor):
            self.require_own(int(found))
        super()._load_from_state_dict(state_dict, prefix, *args)


def fingerprint_of(spec: RegimeSpec) -> int:
    """A number of 63 bits that two regimes share only if technique, settings and sites are the same."""
    text = json.dumps([spec.technique, spec.settings, list(spec.sites)], sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1

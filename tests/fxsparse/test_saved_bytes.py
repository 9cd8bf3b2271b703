"""Bytes kept for backward by whole models of real size, eager against compiled, at batch 8."""

from __future__ import annotations

import pytest
import torch

import fxsparse as fxs

from ..saved_zoo import CASES, ZOO, Case, kept_bytes

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=[f"{case.model}, {case.name}" for case in CASES])
def test_bytes_kept(case: Case, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    make, inputs = ZOO[case.model]
    model, x = make().to(dtype).train(), inputs(8)
    x = x.to(dtype) if x.is_floating_point() else x
    before = kept_bytes(model, x)
    after = kept_bytes(fxs.compile(model, case.policy, (x,)), x)
    print(f"\n  {case.model:<18} {case.name:<20} {before / 2**20:8.1f} -> {after / 2**20:7.1f} MiB   {before / after:6.2f}x")
    assert before / after >= (case.ratio if dtype == torch.float32 else case.ratio / 2)

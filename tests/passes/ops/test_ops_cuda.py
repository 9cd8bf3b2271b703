"""The operators on a GPU: the CPU's numbers, the active autocast dtype, and no waiting between refreshes."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import fxsparse.passes.ops  # noqa: F401
from fxsparse.passes.ops import kth_largest, kth_largest_per_slice

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ops = torch.ops.fxsparse
GEOMETRY = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Make every wait of the host for the GPU an error."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def refresh(x: Tensor, stored: Tensor, t: int, per_dims: list[int], reduce_dims: list[int]) -> Tensor:
    density = torch.tensor(0.3, dtype=torch.float64)
    out: Tensor = ops.refresh_threshold.default(x, stored, torch.tensor(t), density, 2, reduce_dims, 1, per_dims, True, "input:conv")
    return out


@pytest.mark.parametrize("k", [1, 100, 70_000, 200_000])
def test_selection_equals_the_cpu(k: int) -> None:
    x = torch.randn(10, 20_000).relu()
    assert torch.equal(kth_largest(x.cuda(), k).cpu(), kth_largest(x, k))
    assert torch.equal(kth_largest_per_slice(x.cuda(), k // 10 + 1, [0]).cpu(), kth_largest_per_slice(x, k // 10 + 1, [0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("per_dims", "reduce_dims"), [([], []), ([1], []), ([], [2, 3])])
def test_sparsified_tensors_equal_the_cpu(
    dtype: torch.dtype, memory_format: torch.memory_format, per_dims: list[int], reduce_dims: list[int]
) -> None:
    x = torch.randn(4, 6, 5, 5).to(dtype).contiguous(memory_format=memory_format)
    shape = [1, 6, 1, 1] if per_dims else []
    outs = []
    for device in ("cpu", "cuda"):
        stored = torch.full(shape, math.nan, device=device)
        threshold = refresh(x.to(device), stored, 0, per_dims, reduce_dims)
        out = ops.sparsify.default(x.to(device), threshold, reduce_dims, 1, True)
        assert out.stride() == x.stride()
        outs.append(out.cpu())
    assert torch.equal(*outs)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature:UserWarning")
def test_a_step_off_the_period_waits_for_nothing(no_waiting: None) -> None:
    x = torch.empty(4, 6, 5, 5, device="cuda").fill_(1.0).requires_grad_()
    w = torch.empty(8, 6, 3, 3, device="cuda").fill_(1.0).requires_grad_()
    stored = torch.empty((), device="cuda").fill_(0.5)
    a_hat = ops.sparsify.default(x.detach(), refresh(x.detach(), stored, 1, [], []), [], 1, True)
    w_hat = ops.sparsify.default(w, refresh(w.detach(), stored, 1, [], []), [], 1, True)
    ops.swat_convolution.default(x, a_hat, w_hat, None, *GEOMETRY).sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_uses_the_active_dtype(dtype: torch.dtype) -> None:
    x, w = torch.randn(2, 4, 6, 6, device="cuda"), torch.randn(5, 4, 3, 3, device="cuda", requires_grad=True)
    with torch.autocast("cuda", dtype=dtype):
        out = ops.swat_convolution.default(x, x, w, None, *GEOMETRY)
    assert out.dtype == dtype
    out.float().sum().backward()
    assert w.grad is not None
    assert w.grad.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_opcheck() -> None:
    x, w = torch.randn(2, 4, 6, 6, device="cuda", requires_grad=True), torch.randn(5, 4, 3, 3, device="cuda", requires_grad=True)
    stored, density = torch.full((), math.nan, device="cuda"), torch.tensor(0.3, dtype=torch.float64)
    torch.library.opcheck(ops.refresh_threshold.default, (x.detach(), stored, torch.tensor(0), density, 2, [], 1, [], True, "input:conv"))
    torch.library.opcheck(ops.sparsify.default, (x, torch.tensor(0.5, device="cuda"), [], 1, True))
    torch.library.opcheck(ops.swat_convolution.default, (x, x.detach(), w, None, *GEOMETRY), rtol=1e-3, atol=1e-3)

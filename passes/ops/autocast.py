"""Autocast for the contractions of fxsparse: their operands are cast as torch casts those of linear and conv2d."""

from collections.abc import Callable
from typing import Any

import torch

from .codes.layout import is_dense
from .operator import LIBRARY

DEVICE_KEYS = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}


def cast_to_active_dtype(name: str, only: tuple[str, ...] = ()) -> None:
    """Return nothing; under torch.autocast, fxsparse::`name` runs in the dtype that is active then, on the CPU and on CUDA.

    torch.library.register_autocast fixes one dtype when the operator is made, before any torch.autocast(dtype=...) is entered. The
    kernels registered here read it at each call, cast the floating operands of that device, all but float64, and call the operator
    again below autocast. The casts are ordinary ones, above autograd: gradients come back in the operands' own dtypes. With `only`,
    no other arguments are cast.
    """
    _cast_under_autocast(name, only, torch.get_autocast_dtype, DEVICE_KEYS)


def cast_to_float32(name: str, only: tuple[str, ...]) -> None:
    """Return nothing; under torch.autocast on CUDA, fxsparse::`name` runs in float32, as torch's own norms and softmax do there."""
    _cast_under_autocast(name, only, lambda _: torch.float32, {"cuda": "AutocastCUDA"})


def _cast_under_autocast(name: str, only: tuple[str, ...], dtype_of: Callable[[str], torch.dtype], keys: dict[str, str]) -> None:
    op = getattr(torch.ops.fxsparse, name).default
    chosen = [not only or argument.name in only for argument in op._schema.arguments]
    for device_type, key in keys.items():
        LIBRARY.impl(name, _kernel(op, device_type, key, chosen, dtype_of), key)


def _kernel(op: Any, device_type: str, key: str, chosen: list[bool], dtype_of: Callable[[str], torch.dtype]) -> Any:
    autocast_keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def cast_and_call(*args: Any) -> Any:
        dtype = dtype_of(device_type)
        with torch._C._ExcludeDispatchKeyGuard(autocast_keys):
            return op(*(_cast(arg, device_type, dtype) if cast else arg for arg, cast in zip(args, chosen, strict=False)))

    return cast_and_call


def _cast(arg: Any, device_type: str, dtype: torch.dtype) -> Any:
    if not isinstance(arg, torch.Tensor) or not arg.is_floating_point():
        return arg
    if arg.device.type != device_type or arg.dtype in (torch.float64, dtype):
        return arg
    return (arg if is_dense(arg) else arg.contiguous()).to(dtype)  # in the memory order in which codes are kept

"""Autocast for the contractions of fxsparse: their operands are cast as torch casts those of linear and conv2d."""

from typing import Any

import torch

from .operator import LIBRARY

DEVICE_KEYS = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}


def cast_to_active_dtype(name: str) -> None:
    """Return nothing; under torch.autocast, fxsparse::`name` runs in the dtype that is active then, on the CPU and on CUDA.

    torch.library.register_autocast fixes one dtype when the operator is made, before any torch.autocast(dtype=...) is entered. The
    kernels registered here read it at each call, cast the floating operands of that device, all but float64, and call the operator
    again below autocast. The casts are ordinary ones, above autograd: gradients come back in the operands' own dtypes.
    """
    op = getattr(torch.ops.fxsparse, name).default
    for device_type, key in DEVICE_KEYS.items():
        LIBRARY.impl(name, _kernel(op, device_type, key), key)


def _kernel(op: Any, device_type: str, key: str) -> Any:
    autocast_keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def cast_and_call(*args: Any) -> Any:
        dtype = torch.get_autocast_dtype(device_type)
        with torch._C._ExcludeDispatchKeyGuard(autocast_keys):
            return op(*(_cast(arg, device_type, dtype) for arg in args))

    return cast_and_call


def _cast(arg: Any, device_type: str, dtype: torch.dtype) -> Any:
    if not isinstance(arg, torch.Tensor) or not arg.is_floating_point():
        return arg
    if arg.device.type != device_type or arg.dtype == torch.float64:
        return arg
    return arg.to(dtype)

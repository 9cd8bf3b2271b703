"""What the command line's arguments stand for: models by name, example inputs by shape."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import FxSparseError

if TYPE_CHECKING:
    import torch
    from torch import nn

INPUT_DTYPES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "bool")


def example_input(text: str) -> torch.Tensor:
    """Zeros of the shape and dtype that a text such as "8x3x224x224" or "8x128:int64" says.

    Raises:
        FxSparseError: it says no shape, or an unknown dtype.
    """
    import torch

    from .techniques import closest

    sides, _, dtype = text.partition(":")
    if not sides or not all(side.isascii() and side.isdigit() and int(side) > 0 for side in sides.split("x")):
        raise FxSparseError(f"--input {text!r} is not a shape; expected positive numbers joined by x, such as 8x3x224x224 or 8x128:int64")
    dtype = dtype or INPUT_DTYPES[0]
    if dtype not in INPUT_DTYPES:
        known = ", ".join(INPUT_DTYPES)
        raise FxSparseError(f"--input {text!r}: unknown dtype {dtype!r}{closest(dtype, INPUT_DTYPES)}; expected one of {known}")
    return torch.zeros([int(side) for side in sides.split("x")], dtype=getattr(torch, dtype))


def load_model(text: str) -> nn.Module:
    """The model that "torchvision:NAME" or "module.path:factory" names, without pretrained weights.

    Raises:
        FxSparseError: there is none of that name, or it cannot be imported or made.
    """
    from torch import nn

    from .techniques import closest

    source, colon, name = text.partition(":")
    if not source or not colon or not name:
        raise FxSparseError(f"{text!r} names no model; expected torchvision:NAME, such as torchvision:resnet50, or module.path:factory")
    if source == "torchvision":
        return _torchvision_model(name)
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does, so that a module of the current folder is found
    try:
        module = importlib.import_module(source)
    except Exception as error:
        hint = closest(source, ["torchvision"])
        raise FxSparseError(f"{text!r}: the module {source!r} does not import: {type(error).__name__}: {error}{hint}") from error
    try:
        made: Any = module
        for part in name.split("."):
            made = getattr(made, part)
    except AttributeError:
        raise FxSparseError(f"{text!r}: the module {source!r} has no {name!r}{closest(name, vars(module))}") from None
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise FxSparseError(f"{text!r} is of type {type(made).__name__}; expected a function or class that makes an nn.Module")
        try:
            made = made()
        except Exception as error:
            raise FxSparseError(f"{text!r} was called without arguments and failed: {type(error).__name__}: {error}") from error
    if not isinstance(made, nn.Module):
        raise FxSparseError(f"{text!r} made an object of type {type(made).__name__}; expected an nn.Module")
    return made


def _torchvision_model(name: str) -> nn.Module:
    from .techniques import closest

    try:
        from torchvision.models import get_model, list_models
    except ModuleNotFoundError as error:
        raise FxSparseError(f"'torchvision:{name}': {error.name!r} is not installed: pip install 'fxsparse[all]'") from None
    if name not in list_models():
        raise FxSparseError(f"torchvision has no model {name!r}{closest(name, list_models())}; torchvision.models.list_models() lists them")
    settings = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    made: nn.Module = get_model(name, weights=None, **_without_backbone_weights(name), **settings)
    return made


def _without_backbone_weights(name: str) -> dict[str, Any]:
    """Detection and segmentation models fetch a pretrained backbone unless told not to."""
    import inspect

    from torchvision.models import get_model_builder

    return {"weights_backbone": None} if "weights_backbone" in inspect.signature(get_model_builder(name)).parameters else {}

"""The model that a command's argument names: torchvision's by name, or whatever a factory makes."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FxSparseError
from ..techniques import closest

if TYPE_CHECKING:
    from torch import nn


def load_model(text: str) -> nn.Module:
    """The model that "torchvision:NAME" or "module.path:factory" names, without pretrained weights.

    Raises:
        FxSparseError: there is none of that name, or it cannot be imported or made; what its own code raised is shown with its place.
    """
    source, colon, name = text.partition(":")
    if not source or not colon or not name:
        raise FxSparseError(f"{text!r} names no model; expected torchvision:NAME, such as torchvision:resnet50, or module.path:factory")
    return _torchvision_model(name) if source == "torchvision" else _made_by(text, source, name)


def _made_by(text: str, source: str, name: str) -> nn.Module:
    from torch import nn

    module = _imported(text, source)
    try:
        made: Any = module
        for part in name.split("."):
            made = getattr(made, part)
    except AttributeError:
        public = [known for known in vars(module) if not known.startswith("_")]
        raise FxSparseError(f"{text!r}: the module {source!r} has no {name!r}{closest(name, public)}") from None
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise FxSparseError(f"{text!r} is of type {type(made).__name__}; expected a function or class that makes an nn.Module")
        try:
            made = made()
        except (Exception, SystemExit) as error:
            raise FxSparseError(f"{text!r} was called without arguments and failed: {_own_words(error)}") from error
    if not isinstance(made, nn.Module):
        raise FxSparseError(f"{text!r} made an object of type {type(made).__name__}; expected an nn.Module")
    return made


def _imported(text: str, source: str) -> Any:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does, so that a module of the current folder is found
    try:
        return importlib.import_module(source)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if source != missing and not source.startswith(f"{missing}."):  # it is there, and what it imports is not
            raise FxSparseError(f"{text!r}: the module {source!r} does not import: {_own_words(error)}") from error
        hint = closest(source, _modules_beside(missing))
        raise FxSparseError(f"{text!r}: the module {source!r} does not import: {type(error).__name__}: {error}{hint}") from error
    except (Exception, SystemExit) as error:
        raise FxSparseError(f"{text!r}: the module {source!r} does not import: {_own_words(error)}") from error


def _modules_beside(missing: str) -> Iterable[str]:
    """The modules that are where one was looked for, by their full names."""
    parent, dot, _ = missing.rpartition(".")
    folders = list(getattr(sys.modules.get(parent), "__path__", [])) if parent else None
    found = [f"{parent}{dot}{module.name}" for module in pkgutil.iter_modules(folders)]
    return found if parent else ["torchvision", *found]


def _own_words(error: BaseException) -> str:
    """The last line of an error's traceback, and its place: the innermost line outside installed packages, if there is one."""
    if isinstance(error, SystemExit):
        words = f"it ended the program with status {error.code!r}"
    else:
        words = " ".join(traceback.format_exception_only(type(error), error)[-1].split())
    if isinstance(error, SyntaxError):
        return f"{words} (at {_short(error.filename or '')}:{error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__ and frame.lineno]
    frames = [frame for frame in frames if not frame.filename.startswith("<frozen")]
    own = [frame for frame in frames if not _is_installed(frame.filename)] or frames
    return f"{words} (at {_short(own[-1].filename)}:{own[-1].lineno}, in {own[-1].name})" if own else words


def _is_installed(path: str) -> bool:
    folders = Path(path).parts
    return "site-packages" in folders or "dist-packages" in folders or path.startswith(sysconfig.get_path("stdlib"))


def _short(path: str) -> str:
    inside = os.path.relpath(path) if path and os.path.isabs(path) else path
    return path if inside.startswith("..") else inside


def _torchvision_model(name: str) -> nn.Module:
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

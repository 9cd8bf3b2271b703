"""Where in a model's Python a node was made."""

from __future__ import annotations

import linecache
import re
import traceback
import types
from pathlib import Path

import torch

_NOT_THE_MODEL = ("torch", "fxsparse")
_OWN = (str(Path(__file__).parent),)


def stack_trace_of(frame: types.FrameType | None, stop: types.CodeType) -> str | None:
    """The innermost line that belongs neither to torch nor to fxsparse, as in a traceback; None if there is none inside of ``stop``."""
    while frame is not None and frame.f_code is not stop:
        file = frame.f_code.co_filename
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in _NOT_THE_MODEL and not file.startswith("<"):
            code = linecache.getline(file, frame.f_lineno).strip()
            return f'File "{file}", line {frame.f_lineno}, in {frame.f_code.co_name}\n    {code}'
        frame = frame.f_back
    return None


def place_of_error(error: BaseException) -> str:
    """The innermost line of a traceback that is not torch's, as "FILE:LINE: CODE"; empty if there is none."""
    lines = [line for line in traceback.extract_tb(error.__traceback__) if not line.filename.startswith((*torch.__path__, *_OWN))]
    return f"{lines[-1].filename}:{lines[-1].lineno}: {lines[-1].line}" if lines else ""


def place_of(stack_trace: str | None) -> str:
    """The innermost line of a traceback as "FILE:LINE: CODE"; empty if there is none."""
    found = re.findall(r'File "([^"]+)", line (\d+)[^\n]*\n\s+([^\n]*)', stack_trace or "")
    return f"{found[-1][0]}:{found[-1][1]}: {found[-1][2].strip()}" if found else ""

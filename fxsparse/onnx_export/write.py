"""Writing an ONNX model so that a file is either the old one or the new one, and beyond 2 GB with its weights beside it."""

from __future__ import annotations

import os
import re
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from .. import whole_files
from ..errors import ExportError

LIMIT_BYTES = 2**31 - 2**20
_ALIGNMENT = 4096
_SMALLEST_EXTERNAL = 1024


def require_writable(path: str | os.PathLike[str]) -> Path:
    """The path, checked before the long work.

    Raises: ExportError if no file can be written there.
    """
    return whole_files.require_writable(path, ExportError)


def write(model: Any, target: Path, *, limit: int = LIMIT_BYTES) -> int:
    """Writes a ModelProto, and what else its dense weights need, and returns the bytes of both files.

    The new file takes the old one's name only when it is complete. Weights that do not fit into one file of protobuf's size go to
    ``NAME.<random>.data`` beside it, under a name of their own each time, so that a file never points to the weights of another.

    Raises: ExportError if it cannot be written; the old file is then as it was.
    """
    try:
        beside = _weights_beside(model, target) if exceeds(model, limit) else None
        try:
            with whole_files.temporary(target) as temporary:
                temporary.write_bytes(model.SerializeToString())
                with temporary.open("rb") as written:
                    os.fsync(written.fileno())
                os.replace(temporary, target)
        except BaseException:
            if beside is not None:
                beside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ExportError(f"{str(target)!r} cannot be written: {error.strerror or error}; what was there is as it was") from error
    except ValueError as error:  # protobuf's own limit
        raise ExportError(f"{str(target)!r}: the graph without its dense weights is too large for one file: {error}") from error
    _remove_older(target, beside)
    return target.stat().st_size + (beside.stat().st_size if beside is not None else 0)


def exceeds(model: Any, limit: int) -> bool:
    """Whether a ModelProto is larger than a limit; all of it is only measured, which takes long, where its weights come near."""
    graph = model.graph
    size = sum(len(tensor.raw_data) for tensor in graph.initializer)
    for node in graph.node:
        if node.op_type == "Constant":
            held = [node.attribute[0].sparse_tensor] if node.attribute[0].name == "sparse_value" else []
            size += sum(len(part.values.raw_data) + len(part.indices.raw_data) for part in held)
    size += sum(len(part.values.raw_data) + len(part.indices.raw_data) for part in graph.sparse_initializer)
    return size > limit or bool(size > limit // 2 and model.ByteSize() > limit)


def _weights_beside(model: Any, target: Path) -> Path:
    """Moves the raw data of dense initializers to a file of their own, in place."""
    from onnx import TensorProto

    data = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.data")
    with whole_files.temporary(data) as temporary:
        with temporary.open("wb") as file:
            for tensor in model.graph.initializer:
                if len(tensor.raw_data) < _SMALLEST_EXTERNAL:
                    continue
                file.write(bytes(-file.tell() % _ALIGNMENT))
                offset, length = file.tell(), len(tensor.raw_data)
                file.write(tensor.raw_data)
                tensor.ClearField("raw_data")
                tensor.data_location = TensorProto.EXTERNAL
                for key, value in (("location", data.name), ("offset", str(offset)), ("length", str(length))):
                    entry = tensor.external_data.add()
                    entry.key, entry.value = key, value
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, data)
    return data


def _remove_older(target: Path, current: Path | None) -> None:
    pattern = re.compile(re.escape(target.name) + r"\.[0-9a-f]{8}\.data")
    for other in target.parent.iterdir():
        if other != current and pattern.fullmatch(other.name):
            with suppress(OSError):
                other.unlink()

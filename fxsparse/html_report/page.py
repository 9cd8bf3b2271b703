"""The page: the document, the scripts and the styles in one file that asks nothing of a network."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FxSparseError
from ..whole_files import require_writable, write_text
from .document import document

if TYPE_CHECKING:
    from ..compiled_model import CompiledModel

_FOLDER = Path(__file__).resolve().parent
_LIBRARIES = ("d3.min.js", "plot.umd.min.js", "dagre.min.js")
_SCRIPTS = ("format", "model", "colour", "layout", "graph", "details", "table", "charts", "compare", "decisions", "app")
_NOTEBOOK_HEIGHT_PX = 760


def html_page(compiled: CompiledModel, **options: Any) -> str:
    """One self-contained HTML page about a compiled model.

    Args:
        options: see ``document``.

    Raises:
        FxSparseError: jinja2 is not installed; see ``document`` too.
    """
    template = _template()
    data = document(compiled, **options)
    libraries, own, style = _assets()
    scripts = [*libraries, own]
    page: str = template.render(
        title=data["title"],
        style=style,
        scripts=scripts,
        hashes=[_hash(script) for script in scripts],
        data=_as_text(data),
    )
    return page


def save_page(compiled: CompiledModel, path: str | os.PathLike[str], **options: Any) -> None:
    """Writes ``html_page`` whole or not at all. Raises: FxSparseError if the path cannot be written, before the work; see there."""
    target = require_writable(path)
    _template()
    write_text(target, html_page(compiled, **options))


def notebook_page(compiled: CompiledModel) -> str:
    """The page in a frame of its own for a notebook; the report as text where the page cannot be made, with the reason."""
    try:
        page = html_page(compiled)
    except FxSparseError as error:
        return f"<pre>{html.escape(str(compiled.report))}\n{html.escape(str(error))}</pre>"
    style = f"width: 100%; height: {_NOTEBOOK_HEIGHT_PX}px; border: 1px solid #8884; border-radius: 8px"
    return f'<iframe sandbox="allow-scripts" style="{style}" srcdoc="{html.escape(page)}"></iframe>'


def _template() -> Any:
    try:
        import jinja2
    except ImportError:
        raise FxSparseError("jinja2 is not installed; HTML pages need the extra: pip install 'fxsparse[report]'") from None
    loader = jinja2.FileSystemLoader(_FOLDER / "page")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return environment.get_template("page.html")


@lru_cache(maxsize=1)
def _assets() -> tuple[list[str], str, str]:
    """The libraries, the page's own script, its style."""
    libraries = [_read("vendor", name) for name in _LIBRARIES]
    licences = [_read("vendor", f"{name.partition('.')[0]}.LICENSE.txt").strip() for name in _LIBRARIES]
    libraries = [f"/*!\n{licence}\n*/\n{_unmapped(text)}" for licence, text in zip(licences, libraries, strict=True)]
    own = "\n".join(_read("page", f"{name}.js") for name in _SCRIPTS)
    return libraries, f'"use strict";\n{own}', _read("page", "style.css")


def _read(*parts: str) -> str:
    return _FOLDER.joinpath(*parts).read_text(encoding="utf-8")


def _unmapped(script: str) -> str:
    """Without the line that tells a browser's tools to fetch a source map."""
    return "\n".join(line for line in script.splitlines() if not line.startswith("//# sourceMappingURL")).strip()


def _hash(script: str) -> str:
    """What the page's own policy lets run: these scripts and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _as_text(data: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever names it holds."""
    text = json.dumps(_finite(data), allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _finite(value: Any) -> Any:
    """The value with null in place of infinity and NaN, which JSON lacks, and keys that are texts."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value

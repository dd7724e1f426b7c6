"""The page of the explorer: compressed content, a template and one script; no network request."""

import base64
import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ghosttrack.report import page
from ghosttrack.report.explorer.content import Content

HERE = Path(__file__).parent
# Files of the page's script, in this order.
SCRIPTS = ("answer.js", "candidates.js", "page.js")


def render(content: Content, version: str) -> str:
    """The page as HTML text; equal content gives equal text.

    Every part is compressed JSON in base64, so that it cannot be parsed as markup; the script
    unpacks a part on demand. The content security policy allows this script by its hash and
    forbids every request.
    """
    script = "".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([HERE, page.TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    parts: dict[str, Any] = {
        "about": content.about,
        "index": content.listing,
        "names": content.names,
    }
    parts |= {f"block-{number}": block for number, block in enumerate(content.blocks)}
    parts |= {f"layer-{number}": layer for number, layer in enumerate(content.layers)}
    parts |= {f"passages-{number}": part for number, part in enumerate(content.passages)}
    return environment.get_template("page.html").render(
        about=content.about,
        version=version,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        parts={name: pack(part) for name, part in parts.items()},
    )


def pack(part: Any) -> str:
    """A JSON-able value as base64 of its zlib stream."""
    text = json.dumps(part, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode("utf-8", "surrogatepass"), 9)).decode()

"""What `corpus.source` may say. Apart from what reads it, so that a dry run can look without importing that."""

import re
from pathlib import Path

EMBEDDED = "embedded"
# Short name -> hub id, configuration.
HUB = {"openwebtext": ("Skylion007/openwebtext", None), "wikitext-103": ("Salesforce/wikitext", "wikitext-103-raw-v1")}
FILES = (".txt", ".jsonl", ".parquet")
# No part begins with a dot or a dash: `../mine` is no data set, and nothing here is an option or leaves the hub's folder.
_PART = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
HUB_ID = re.compile(rf"(?P<id>{_PART}/{_PART})(:(?P<config>{_PART}))?(@(?P<revision>{_PART}))?")


def is_file(source: str) -> bool:
    """Whether it names a file of the user's own rather than a hub data set."""
    path = Path(source).expanduser()
    return path.suffix in FILES or (source not in (EMBEDDED, *HUB) and path.exists())


def refusal(source: str) -> str:
    """Why nothing can be read from it, or ""; whether the hub has it is not asked."""
    if is_file(source):
        path = Path(source).expanduser()
        if not path.is_file():
            return f"corpus.source: there is no file {source}"
        if path.suffix not in FILES:
            return f"corpus.source: {path} must end in one of {', '.join(FILES)}"
        return f"corpus.source: {path} is empty" if path.stat().st_size == 0 else ""
    if source in (EMBEDDED, *HUB) or HUB_ID.fullmatch(source):
        return ""
    return (
        f"corpus.source: {source!r} is neither a file nor a hub data set; expected {EMBEDDED}, {', '.join(HUB)}, "
        f"OWNER/NAME, or a local {', '.join(FILES)} file"
    )

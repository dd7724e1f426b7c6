"""What `corpus.source` may say. Apart from what reads it, so that a dry run can look without importing that."""

import re
from pathlib import Path

from ghosttrack.inputs import file_kinds

EMBEDDED = "embedded"
# Short name -> hub id, configuration.
HUB = {
    "openwebtext": ("Skylion007/openwebtext", None),
    "wikitext-103": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
}
FILES = (".txt", ".jsonl", ".parquet")
# No part begins with a dot or a dash: `../mine` is no data set, and nothing here is an option or leaves the hub's folder.
_PART = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
HUB_ID = re.compile(rf"(?P<id>{_PART}/{_PART})(:(?P<config>{_PART}))?(@(?P<revision>{_PART}))?")


def is_file(source: str) -> bool:
    """Whether it names a file of the user's own rather than a hub data set."""
    path = Path(source).expanduser()
    return path.suffix.lower() in FILES or (
        source not in (EMBEDDED, *HUB) and file_kinds.exists(path)
    )


def refusal(source: str) -> str:
    """Why nothing can be read from it, or ""; whether the hub has it is not asked."""
    if is_file(source):
        path = Path(source).expanduser()
        if reason := file_kinds.not_a_file(path):
            return f"corpus.source: {reason}"
        if path.suffix.lower() not in FILES:
            return (
                f"corpus.source: {path} must end in one of {', '.join(FILES)}; {_converted(path)}"
            )
        if path.stat().st_size == 0:
            return f"corpus.source: {path} is empty"
        return f"corpus.source: {reason}" if (reason := file_kinds.refusal(path)) else ""
    if source in (EMBEDDED, *HUB) or HUB_ID.fullmatch(source):
        return ""
    return (
        f"corpus.source: {source!r} is neither a file nor a hub data set; expected {EMBEDDED}, {', '.join(HUB)}, "
        f"OWNER/NAME, or a local {', '.join(FILES)} file"
    )


def _converted(path: Path) -> str:
    """How a file with another ending becomes a corpus."""
    reader = {
        ".csv": "read_csv(FILE)",
        ".tsv": 'read_csv(FILE, sep="\\t")',
        ".json": "read_json(FILE)",
    }.get(path.suffix.lower())
    if reader:
        return f'with pandas: pandas.{reader}.to_json("NAME.jsonl", orient="records", lines=True)'
    return file_kinds.converted(path)

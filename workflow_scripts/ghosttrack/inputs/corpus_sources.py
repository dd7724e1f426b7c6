"""Valid values of `corpus.source`. A dry run imports this module, not those that read a corpus."""

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
# No part begins with a dot or a dash, so neither `../mine` nor a command-line option matches.
_PART = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
HUB_ID = re.compile(rf"(?P<id>{_PART}/{_PART})(:(?P<config>{_PART}))?(@(?P<revision>{_PART}))?")


def is_file(source: str) -> bool:
    """Whether a source is a local file, not a hub data set."""
    path = Path(source).expanduser()
    return path.suffix.lower() in FILES or (
        source not in (EMBEDDED, *HUB) and file_kinds.exists(path)
    )


def refusal(source: str) -> str:
    """Why a source is invalid, with a remedy; "" if it is valid. Does not ask the hub."""
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
        f"corpus.source: {source!r} is neither a file nor a hub data set; expected {EMBEDDED}, "
        f"{', '.join(HUB)}, OWNER/NAME, or a local {', '.join(FILES)} file"
    )


def _converted(path: Path) -> str:
    """How to convert a file with another extension to a corpus."""
    reader = {
        ".csv": "read_csv(FILE)",
        ".tsv": 'read_csv(FILE, sep="\\t")',
        ".json": "read_json(FILE)",
    }.get(path.suffix.lower())
    if reader:
        return f'with pandas: pandas.{reader}.to_json("NAME.jsonl", orient="records", lines=True)'
    return file_kinds.converted(path)

"""Recognise files by their first bytes, where their extension is misleading.

Fast enough for a dry run.
"""

import codecs
from pathlib import Path

from ghosttrack.settings import names

_HEAD = 4096
_TO_CSV = "open it in the program that wrote it and save it as CSV in UTF-8"
_TO_PARQUET = "read it with the library that wrote it and write it with pandas' to_parquet"
# The first bytes of a file, its format, and a way to convert it.
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (codecs.BOM_UTF32_LE, "UTF-32 text", "convert it to UTF-8: iconv -f UTF-32 -t UTF-8 OLD > NEW"),
    (codecs.BOM_UTF16_LE, "UTF-16 text", "convert it to UTF-8: iconv -f UTF-16 -t UTF-8 OLD > NEW"),
    (codecs.BOM_UTF16_BE, "UTF-16 text", "convert it to UTF-8: iconv -f UTF-16 -t UTF-8 OLD > NEW"),
    (b"PK\x03\x04", "an Excel workbook (.xlsx) or another zip archive", f"unzip it, or {_TO_CSV}"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook (.xls)", _TO_CSV),
    (b"\x1f\x8b", "compressed with gzip", "unpack it with gunzip"),
    (b"BZh", "compressed with bzip2", "unpack it with bunzip2"),
    (b"\xfd7zXZ\x00", "compressed with xz", "unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it with unzstd"),
    (b"PAR1", "a parquet file", "change its extension to .parquet"),
    (b"ARROW1", "an Arrow (feather) file", _TO_PARQUET),
    (
        b"\xff\xff\xff\xff",
        "an Arrow stream, as Dataset.save_to_disk writes it",
        "use Dataset.to_parquet instead",
    ),
    (b"Obj\x01", "an Avro file", _TO_PARQUET),
    (b"\x89HDF", "an HDF5 file", _TO_PARQUET),
    (b"\x93NUMPY", "a numpy file", _TO_PARQUET),
    (b"SQLite format 3", "an SQLite database", "export the table as CSV"),
    (b"\x80\x04\x95", "a Python pickle", _TO_PARQUET),
    (b"\x80\x05\x95", "a Python pickle", _TO_PARQUET),
    (b"<?xml", "an XML file", _TO_PARQUET),
    (b"{\\rtf", "an RTF document", "save it as plain text in UTF-8"),
    (b"%PDF-", "a PDF", "save its text as a UTF-8 text file"),
    (
        b"version https://git-lfs.github.com/spec/",
        "a pointer of Git LFS, not the file itself",
        "fetch the file with git lfs pull",
    ),
)
_PAGES = (b"<!doctype html", b"<html", b"<table")
_MISSING = "missing"
# In UTF-16, every second byte of Western text is NUL.
_NUL_SHARE = 0.2


def refusal(path: Path) -> str:
    """Why the content of a file contradicts its extension, with a remedy; "" if it does not.

    A file that cannot be opened also gives ""; its reader reports the error.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
    except OSError:
        return ""
    parquet = path.suffix.lower() == ".parquet"
    for start, kind, remedy in _KINDS:
        if head.startswith(start) and not (parquet and start == b"PAR1"):
            return f"{path} is {kind}: {remedy}"
    if head.lstrip().lower().startswith(_PAGES):
        return (
            f"{path} is a web page: download the file itself (on the hub and on GitHub: the raw "
            "file), or save the table of the page as CSV"
        )
    if head.count(0) > _NUL_SHARE * len(head) and not parquet:
        return (
            f"{path} is full of NUL bytes, like binary files and UTF-16 text without a byte order "
            "mark: if it is text, convert it to UTF-8: iconv -f UTF-16LE -t UTF-8 OLD > NEW"
        )
    return ""


def not_a_file(path: Path) -> str:
    """Why a path does not name a regular file, with a remedy; "" if it does."""
    if reason := _out_of_reach(path):
        return (
            f"there is no file {path} (a relative path starts at the current directory)"
            if reason == _MISSING
            else reason
        )
    if path.is_dir():
        return (
            f"{path} is a directory, expected a file (if Dataset.save_to_disk wrote it: "
            "datasets.load_from_disk(DIRECTORY).to_parquet(FILE))"
        )
    return (
        ""
        if path.is_file()
        else f"{path} is a device or a pipe, expected a file; write its content to a file"
    )


def not_a_folder(path: Path) -> str:
    """Why a path does not name a directory, with a remedy; "" if it does."""
    if reason := _out_of_reach(path):
        return f"there is no directory {path}" if reason == _MISSING else reason
    return "" if path.is_dir() else f"{path} is a file, expected a directory"


def exists(path: Path) -> bool:
    """Whether a path exists; also True if that cannot be determined (see `not_a_file`)."""
    return _out_of_reach(path) != _MISSING


def _out_of_reach(path: Path) -> str:
    """ "" if a path exists, `_MISSING` if not, the reason if it cannot be looked up."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return _MISSING
    except OSError as error:  # e.g. a name that is too long, no permission, a circular link
        return (
            f"{names.short(str(path))} cannot be looked up ({error.strerror}); correct the path, "
            "or the permissions of its directories"
        )
    return ""


_CONVERSIONS = {
    "": "add the extension of its format",
    ".xlsx": _TO_CSV,
    ".xls": _TO_CSV,
    ".ods": _TO_CSV,
    ".numbers": _TO_CSV,
    ".ndjson": "change its extension to .jsonl",
    ".jsonlines": "change its extension to .jsonl",
    ".txt": "save it as .csv, with a first line of column names",
    ".tab": "change its extension to .tsv",
    ".gz": "unpack it with gunzip",
    ".zip": "unpack it with unzip",
    ".bz2": "unpack it with bunzip2",
    ".xz": "unpack it with unxz",
    ".zst": "unpack it with unzstd",
    ".rds": "in R: write.csv(readRDS(FILE), NEW, row.names = FALSE)",
}


def converted(path: Path) -> str:
    """How to convert a file with another extension to a supported table."""
    return _CONVERSIONS.get(path.suffix.lower(), _TO_PARQUET)

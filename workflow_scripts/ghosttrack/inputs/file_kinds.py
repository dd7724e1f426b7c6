"""What a file holds, by its first bytes, where its ending says another thing. Cheap enough for a dry run."""

import codecs
from pathlib import Path

from ghosttrack.settings import names

_HEAD = 4096
_TO_CSV = "open it in the program that wrote it and save it as CSV in UTF-8"
_TO_PARQUET = "read it with the library that wrote it and write it with pandas' to_parquet"
# The first bytes, what they mean, and how the file becomes one that can be read.
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
    (b"PAR1", "a parquet file", "give its name the ending .parquet"),
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
_NUL_SHARE = 0.2  # UTF-16 without a byte order mark: every second byte of Western text is NUL


def refusal(path: Path) -> str:
    """Why a file cannot be what its ending says, and how it becomes readable; "" if its first bytes speak against nothing.

    A file that cannot be opened gives "": its reader says why.
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
        return f"{path} is a web page: download the file itself (on the hub and on GitHub, its raw form), or save a table of the page as CSV"
    if head.count(0) > _NUL_SHARE * len(head) and not parquet:
        return (
            f"{path} is full of NUL bytes, as UTF-16 text without a byte order mark is and binary files are: "
            "if it is text, convert it to UTF-8: iconv -f UTF-16LE -t UTF-8 OLD > NEW"
        )
    return ""


def not_a_file(path: Path) -> str:
    """Why a path names no file that can be looked at, with a remedy; "" if it names one."""
    if reason := _out_of_reach(path):
        return (
            f"there is no file {path} (it is looked for from the folder of the command)"
            if reason == _MISSING
            else reason
        )
    if path.is_dir():
        return (
            f"{path} is a folder, expected one file (of a folder that Dataset.save_to_disk wrote: "
            "datasets.load_from_disk(FOLDER).to_parquet(FILE))"
        )
    return "" if path.is_file() else f"{path} is a device or a pipe; write its content to a file"


def not_a_folder(path: Path) -> str:
    """Why a path names no folder that can be looked at, with a remedy; "" if it names one."""
    if reason := _out_of_reach(path):
        return f"there is no directory {path}" if reason == _MISSING else reason
    return "" if path.is_dir() else f"{path} is not a directory but a file"


def exists(path: Path) -> bool:
    """Whether anything lies at a path; True too where that cannot be found out, which `not_a_file` then says."""
    return _out_of_reach(path) != _MISSING


def _out_of_reach(path: Path) -> str:
    """Why nothing can be said of what lies at a path, or `_MISSING`; "" if it can."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return _MISSING
    except (
        OSError
    ) as error:  # a name that is too long, a folder without permission, a link to itself
        shown = names.short(str(path))
        return f"{shown} cannot be looked up ({error.strerror}); correct the path, or the permissions of its folders"
    return ""


_CONVERSIONS = {
    "": "add the ending that says what it holds",
    ".xlsx": _TO_CSV,
    ".xls": _TO_CSV,
    ".ods": _TO_CSV,
    ".numbers": _TO_CSV,
    ".ndjson": "give its name the ending .jsonl",
    ".jsonlines": "give its name the ending .jsonl",
    ".txt": "a table needs a line with the names of its columns: save it as .csv",
    ".tab": "give its name the ending .tsv",
    ".gz": "unpack it with gunzip",
    ".zip": "unpack it with unzip",
    ".bz2": "unpack it with bunzip2",
    ".xz": "unpack it with unxz",
    ".zst": "unpack it with unzstd",
    ".rds": "in R: write.csv(readRDS(FILE), NEW, row.names = FALSE)",
}


def converted(path: Path) -> str:
    """How a file with the ending of another kind becomes a table that can be read."""
    return _CONVERSIONS.get(path.suffix.lower(), _TO_PARQUET)

"""Lines of a text file, one at a time in bounded memory, and errors that name the line or the byte that cannot be read."""

import codecs
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ghosttrack.errors import UserError
from ghosttrack.inputs import file_kinds

# Characters of a line, and of a document of a corpus: more than the longest novels, in at most 40 MB of memory.
LONGEST = 10_000_000
# Characters or bytes that are read at a time where they are only counted.
_PIECE = 2**20


def read_lines(path: Path, key: str, *, newline: str | None = None) -> Iterator[str]:
    r"""Lines of a UTF-8 file with their line ends; a byte order mark is left out.

    Args:
        path: the file. key: the setting or argument that names it, for errors.
        newline: as in `open`: None turns "\r\n" and "\r" into "\n", "" keeps them.
    Raises:
        UserError: the file is of another kind (compressed, a workbook), a line is longer than LONGEST characters, or a byte
            is not UTF-8; names the line, and the byte's offset.
    """
    _require_text(path, key)
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline=newline) as stream:
            while line := stream.readline(LONGEST + 1):
                number += 1
                if len(line) > LONGEST and line[-1] not in "\r\n":
                    raise UserError(
                        f"{key}: line {number} of {path} has {len(line) + _rest_of_line(stream):,} characters, more than "
                        f"{LONGEST:,}; break it into several lines"
                    )
                yield line
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, key, error) from None


def read_text(path: Path, key: str) -> str:
    """A UTF-8 file as a whole, without its byte order mark; a UserError names the line and the offset of a bad byte."""
    _require_text(path, key)
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, key, error) from None


def in_one_line(error: BaseException) -> str:
    """What another library says in its error, without line breaks."""
    return " ".join(str(error).split())


def _require_text(path: Path, key: str) -> None:
    if reason := file_kinds.refusal(path):
        raise UserError(f"{key}: {reason}")


def _unreadable(path: Path, key: str, error: OSError | UnicodeDecodeError) -> UserError:
    if isinstance(error, OSError):
        return UserError(
            f"{key}: {path} cannot be read ({error.strerror}); make it readable, or name another file"
        )
    return UserError(
        f"{key}: {path} is not UTF-8 text: {_first_bad_byte(path)}; convert it to UTF-8, "
        "if it is from Windows or Excel: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
    )


def _rest_of_line(stream: IO[str]) -> int:
    """Characters up to the end of the line, read in pieces."""
    length = 0
    while piece := stream.readline(_PIECE):
        length += len(piece.rstrip("\r\n"))
        if piece[-1] in "\r\n":
            break
    return length


def _first_bad_byte(path: Path) -> str:
    """Where a file stops being UTF-8, in words."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    ends = io.IncrementalNewlineDecoder(
        None, translate=True
    )  # every kind of line end becomes one "\n"
    offset, line = 0, 1
    with path.open("rb") as stream:
        while True:
            piece = stream.read(_PIECE)
            offset += len(piece)
            try:
                line += ends.decode(decoder.decode(piece, final=not piece)).count("\n")
            except UnicodeDecodeError as error:
                before = ends.decode(error.object[: error.start].decode("utf-8"), final=True)
                line += before.count("\n")
                # error.object also holds the bytes of a character that the piece before had begun.
                offset += error.start - len(error.object)
                return f"line {line} holds the byte 0x{error.object[error.start]:02x} at offset {offset:,} of the file"
            if not piece:
                return "it changed while it was read"

"""Read text files line by line in bounded memory.

Errors name the line or byte that cannot be read.
"""

import codecs
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ghosttrack.errors import UserError
from ghosttrack.inputs import file_kinds

# Maximum number of characters of a line or of a document: more than the longest novels have. A
# string of this length takes at most 40 MB.
LONGEST = 10_000_000
# Number of characters or bytes to read at a time where they are only counted.
_PIECE = 2**20


def read_lines(path: Path, key: str, *, newline: str | None = None) -> Iterator[str]:
    r"""Lines of a UTF-8 file with their line ends, without a byte order mark.

    Args:
        path: the file. key: the setting or argument that names it, for errors.
        newline: as for `open`: None converts "\r\n" and "\r" to "\n", "" keeps them.
    Raises:
        UserError: the file has another format (compressed, a workbook), a line is longer than
            LONGEST characters, or a byte is not UTF-8; names the line and the offset of the byte.
    """
    _require_text(path, key)
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline=newline) as stream:
            while line := stream.readline(LONGEST + 1):
                number += 1
                if len(line) > LONGEST and line[-1] not in "\r\n":
                    raise UserError(
                        f"{key}: line {number} of {path} has {len(line) + _rest_of_line(stream):,} "
                        f"characters, more than {LONGEST:,}; split it into several lines"
                    )
                yield line
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, key, error) from None


def read_text(path: Path, key: str) -> str:
    """The content of a UTF-8 file without a byte order mark; errors as in `read_lines`."""
    _require_text(path, key)
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, key, error) from None


def in_one_line(error: BaseException) -> str:
    """The message of an error without line breaks."""
    return " ".join(str(error).split())


def _require_text(path: Path, key: str) -> None:
    if reason := file_kinds.refusal(path):
        raise UserError(f"{key}: {reason}")


def _unreadable(path: Path, key: str, error: OSError | UnicodeDecodeError) -> UserError:
    if isinstance(error, OSError):
        return UserError(
            f"{key}: {path} cannot be read ({error.strerror}); make it readable, or name another "
            "file"
        )
    return UserError(
        f"{key}: {path} is not UTF-8 text: {_first_bad_byte(path)}; convert it to UTF-8 "
        "(from Windows or Excel: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW)"
    )


def _rest_of_line(stream: IO[str]) -> int:
    """Number of characters up to the end of the line."""
    length = 0
    while piece := stream.readline(_PIECE):
        length += len(piece.rstrip("\r\n"))
        if piece[-1] in "\r\n":
            break
    return length


def _first_bad_byte(path: Path) -> str:
    """Line and offset of the first byte that is not UTF-8, for an error message."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)  # every line end becomes "\n"
    offset, line = 0, 1
    with path.open("rb") as stream:
        while True:
            piece = stream.read(_PIECE)
            offset += len(piece)
            try:
                line += newlines.decode(decoder.decode(piece, final=not piece)).count("\n")
            except UnicodeDecodeError as error:
                before = newlines.decode(error.object[: error.start].decode("utf-8"), final=True)
                line += before.count("\n")
                # error.object begins with the incomplete character at the end of the previous
                # piece.
                offset += error.start - len(error.object)
                byte = error.object[error.start]
                return f"line {line} holds the byte 0x{byte:02x} at offset {offset:,} of the file"
            if not piece:
                return "the file changed while it was read"

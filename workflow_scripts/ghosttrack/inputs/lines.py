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
UTF8 = "utf-8"
# Number of characters or bytes to read at a time where they are only counted.
_PIECE = 2**20


class UndecodableError(UserError):
    """A byte is not text in the expected encoding."""


def read_lines(
    path: Path,
    key: str,
    *,
    newline: str | None = None,
    encoding: str = UTF8,
    errors: str | None = None,
) -> Iterator[str]:
    r"""Lines of a text file with their line ends, without a byte order mark.

    Args:
        path: the file. key: the setting or argument that names it, for errors.
        newline: as for `open`: None converts "\r\n" and "\r" to "\n", "" keeps them; "\n" ends
            lines at "\n" only.
        encoding, errors: as for `open`.
    Raises:
        UserError: the file has another format (compressed, a workbook), or a line is longer than
            LONGEST characters.
        UndecodableError: a byte does not fit the encoding; names the line and the byte's offset.
    """
    _require_text(path, key)
    number = 0
    try:
        with path.open(encoding=_codec(encoding), newline=newline, errors=errors) as stream:
            while line := stream.readline(LONGEST + 1):
                number += 1
                if len(line) > LONGEST and line[-1] not in "\r\n":
                    raise UserError(
                        f"{key}: line {number} of {path} has {len(line) + _rest_of_line(stream):,} "
                        f"characters, more than {LONGEST:,}; split it into several lines"
                    )
                yield line
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, key, error, encoding) from None


def read_text(path: Path, key: str, encoding: str = UTF8) -> str:
    """The content of a text file without a byte order mark; errors as in `read_lines`."""
    _require_text(path, key)
    try:
        return path.read_text(encoding=_codec(encoding))
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, key, error, encoding) from None


def require_encoding(name: str, key: str) -> None:
    """Check that a name is that of a text encoding in which ASCII text keeps its bytes.

    Raises:
        UserError: it is not; names `key`.
    """
    try:
        fits = name.isascii() and "text,1".encode(name) == b"text,1"
    except (LookupError, UnicodeError):
        fits = False
    if not fits:
        raise UserError(
            f"{key}: {name!r} is not an encoding that can be read; expected utf-8, windows-1252 "
            "(Excel on Windows), iso-8859-2, mac-roman, shift_jis, ...; convert other files to UTF-8"
        )


def _codec(encoding: str) -> str:
    """The encoding as Python's `open` expects it; UTF-8 without a byte order mark."""
    return "utf-8-sig" if codecs.lookup(encoding).name == UTF8 else encoding


def in_one_line(error: BaseException) -> str:
    """The message of an error without line breaks."""
    return " ".join(str(error).split())


def _require_text(path: Path, key: str) -> None:
    if reason := file_kinds.refusal(path):
        raise UserError(f"{key}: {reason}")


def _unreadable(
    path: Path, key: str, error: OSError | UnicodeDecodeError, encoding: str
) -> UserError:
    if isinstance(error, OSError):
        return UserError(
            f"{key}: {path} cannot be read ({error.strerror}); make it readable, or name another "
            "file"
        )
    utf8 = codecs.lookup(encoding).name == UTF8
    return UndecodableError(
        f"{key}: {path} is not {'UTF-8' if utf8 else encoding} text: "
        f"{_first_bad_byte(path, encoding)}; convert it to UTF-8 "
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


def _first_bad_byte(path: Path, encoding: str = UTF8) -> str:
    """Line and offset of the first byte that does not fit the encoding, for an error message."""
    decoder = codecs.getincrementaldecoder(encoding)()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)  # every line end becomes "\n"
    offset, line = 0, 1
    with path.open("rb") as stream:
        while True:
            piece = stream.read(_PIECE)
            offset += len(piece)
            try:
                line += newlines.decode(decoder.decode(piece, final=not piece)).count("\n")
            except UnicodeDecodeError as error:
                before = newlines.decode(error.object[: error.start].decode(encoding), final=True)
                line += before.count("\n")
                # error.object begins with the incomplete character at the end of the previous
                # piece.
                offset += error.start - len(error.object)
                byte = error.object[error.start]
                return f"line {line} holds the byte 0x{byte:02x} at offset {offset:,} of the file"
            if not piece:
                return "the file changed while it was read"

"""Tokens as people read them: alone, with their leading space, and inside the text around them."""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ghosttrack.inputs.corpus import Tokens

# Tokens shown around one. A causal model has seen only those before it; those after are for the reader.
BEFORE, AFTER = 24, 8
# What a decoder writes for bytes that are no whole character.
_BROKEN = "\ufffd"
# Letters for bytes in byte-level vocabularies (GPT-2's): printable Latin-1 stands for itself, the rest for 256 and up.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = sorted({*range(256)}.difference(_PRINTABLE))
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(256 + at): byte for at, byte in enumerate(_OTHERS)
}


class Window(NamedTuple):
    """Text around a token; the three parts joined are the whole text."""

    before: str
    token: str
    after: str


class TokenText:
    """Texts of the tokens of a fast tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        # Some decoders drop the space before the first token, so no token is decoded first.
        self._anchor: list[int] = self._tokenizer.encode("a", add_special_tokens=False).ids
        self._offset = len(self._decode(self._anchor))
        self.alone = cache(self._alone)

    @property
    def size(self) -> int:
        """Tokens that the tokenizer knows; a model's vocabulary may be padded beyond it."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def _alone(self, token: int) -> str:
        """Text of one token; bytes that are no whole character are written like \\xe6."""
        text = self._decode([*self._anchor, token])[self._offset :]
        if text and _BROKEN not in text:
            return text
        name = str(self._tokenizer.id_to_token(token) or f"<{token}>")
        if not _BYTES.keys() >= set(name):
            return name
        return bytes(_BYTES[letter] for letter in name).decode("utf-8", "backslashreplace")

    def window(self, ids: Sequence[int], place: int) -> Window:
        """The text of `ids`, parted at the token `ids[place]`.

        A token that is part of a character is shown as this character; characters that the ends cut are left out.
        """
        while place and self._decode(ids).startswith(_BROKEN):
            ids, place = ids[1:], place - 1
        text = self._whole(ids)
        start = len(self._whole(ids[:place]))
        longer = (self._decode(ids[: end + 1]) for end in range(place, len(ids)))
        stop = next((len(each) for each in longer if not each.endswith(_BROKEN)), len(text))
        token = text[start:stop]
        if token and _BROKEN not in token:
            return Window(text[:start], token, text[stop:])
        return Window(
            text[:start], self.alone(ids[place]), self._whole(ids[place + 1 :]).lstrip(_BROKEN)
        )

    def _whole(self, ids: Sequence[int]) -> str:
        """Text of `ids` without a broken character at its end."""
        return self._decode(ids).rstrip(_BROKEN)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


def window_of(corpus: Tokens, row: int, text: TokenText) -> Window:
    """The text around row `row`, within its context and its document."""
    context, position = divmod(row, corpus.tokens.shape[1])
    own = np.flatnonzero(
        corpus.documents[context] == corpus.documents[context, position]
    )  # they lie end to end
    first, last = max(int(own[0]), position - BEFORE), min(int(own[-1]), position + AFTER)
    return text.window(corpus.tokens[context, first : last + 1].tolist(), position - first)

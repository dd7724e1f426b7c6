"""Tokens as readable text: alone, with their leading space, and within the surrounding text."""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ghosttrack.inputs.corpus import PackedTokens

# Number of tokens shown before and after a token. The model has read only those before it.
BEFORE, AFTER = 24, 8
# A decoder's output for bytes that form no complete character.
_BROKEN = "\ufffd"
# The letters that byte-level vocabularies (GPT-2) use for bytes: printable Latin-1 characters
# represent themselves, and characters from 256 on represent the other bytes.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = sorted({*range(256)}.difference(_PRINTABLE))
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(256 + at): byte for at, byte in enumerate(_OTHERS)
}


class Window(NamedTuple):
    """A token with the text before and after it."""

    before: str
    token: str
    after: str


class TokenText:
    """Converts tokens of a fast tokenizer to text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        # Some decoders drop the space before the first token, so every token is decoded after
        # another one.
        self._anchor: list[int] = self._tokenizer.encode("a", add_special_tokens=False).ids
        self._offset = len(self._decode(self._anchor))
        self.alone = cache(self._alone)

    @property
    def size(self) -> int:
        """Size of the tokenizer's vocabulary; the model's may be padded to a larger size."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def _alone(self, token: int) -> str:
        """Text of one token; bytes of an incomplete character are written as \\xe6."""
        text = self._decode([*self._anchor, token])[self._offset :]
        if text and _BROKEN not in text:
            return text
        name = str(self._tokenizer.id_to_token(token) or f"<{token}>")
        if not _BYTES.keys() >= set(name):
            return name
        return bytes(_BYTES[letter] for letter in name).decode("utf-8", "backslashreplace")

    def window(self, ids: Sequence[int], index: int) -> Window:
        """The text of `ids`, divided at the token `ids[index]`.

        A token that is part of a character is shown as the whole character. Incomplete characters
        at both ends are omitted.
        """
        while index and self._decode(ids).startswith(_BROKEN):
            ids, index = ids[1:], index - 1
        text = self._whole(ids)
        start = len(self._whole(ids[:index]))
        longer = (self._decode(ids[: end + 1]) for end in range(index, len(ids)))
        stop = next((len(head) for head in longer if not head.endswith(_BROKEN)), len(text))
        token = text[start:stop]
        if token and _BROKEN not in token:
            return Window(text[:start], token, text[stop:])
        return Window(
            text[:start], self.alone(ids[index]), self._whole(ids[index + 1 :]).lstrip(_BROKEN)
        )

    def _whole(self, ids: Sequence[int]) -> str:
        """Text of `ids` without an incomplete character at its end."""
        return self._decode(ids).rstrip(_BROKEN)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


def window_of(corpus: PackedTokens, row: int, text: TokenText) -> Window:
    """The text around the token of row `row`, within its context and its document."""
    context, position = divmod(row, corpus.tokens.shape[1])
    # The tokens of a document are contiguous.
    document = np.flatnonzero(corpus.documents[context] == corpus.documents[context, position])
    first = max(int(document[0]), position - BEFORE)
    last = min(int(document[-1]), position + AFTER)
    return text.window(corpus.tokens[context, first : last + 1].tolist(), position - first)

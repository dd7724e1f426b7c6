"""Readable text of tokens: spaces, whole characters, and windows within document and context."""

from typing import Any

import numpy as np
import pytest
import small_models
from tokenizers import pre_tokenizers

from ghosttrack.inputs import token_text
from ghosttrack.inputs.corpus import PackedTokens
from ghosttrack.inputs.token_text import TokenText, Window, window_of


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return small_models.make_tokenizer()


@pytest.fixture(scope="module")
def text(tokenizer: Any) -> TokenText:
    return TokenText(tokenizer)


def ids_of(tokenizer: Any, words: str) -> list[int]:
    found: list[int] = tokenizer(words, add_special_tokens=False)["input_ids"]
    return found


def test_a_token_alone_keeps_its_space_and_broken_characters_show_their_bytes(
    tokenizer: Any, text: TokenText
) -> None:
    capital = ids_of(tokenizer, "The capital")[-1]
    assert text.alone(capital) == " capital"
    assert text.alone(0) == "<s>"
    letter = ids_of(tokenizer, "São")
    assert "".join(text.alone(token) for token in letter) == "São"
    assert [text.alone(half) for half in ids_of(tokenizer, "é")] == ["\\xc3", "\\xa9"]
    assert bytes(token_text._BYTES[letter] for letter in "Ġæ") == b" \xe6"
    assert set(token_text._BYTES) == set(pre_tokenizers.ByteLevel.alphabet())
    assert text.alone(10_000) == "<10000>"
    assert text.size == len(tokenizer)


def test_a_decoder_that_drops_the_first_space_does_not_hide_it() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = Tokenizer(models.WordLevel({"▁a": 0, "▁Paris": 1, "s": 2, "?": 3}, unk_token="?"))
    pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    text = TokenText(PreTrainedTokenizerFast(tokenizer_object=pieces))
    assert [text.alone(token) for token in (1, 2)] == [" Paris", "s"]
    assert text.window([0, 1, 2], 1) == Window("a", " Paris", "s")


def test_every_window_of_a_text_joins_to_the_text(tokenizer: Any, text: TokenText) -> None:
    words = "The capital of São Paulo is 東京 … or 😀"
    ids = ids_of(tokenizer, words)
    windows = [text.window(ids, place) for place in range(len(ids))]
    assert {"".join(window) for window in windows} == {words}
    assert all(window.token and "\ufffd" not in window.token for window in windows)
    # Each byte of a character is shown as this character.
    assert {window.token.strip() for window in windows} >= {"東", "京", "😀", "…"}
    assert windows[1].before == "The"
    assert windows[1].token == " capital"


def test_incomplete_characters_at_the_ends_of_a_window_are_omitted(
    tokenizer: Any, text: TokenText
) -> None:
    ids = ids_of(tokenizer, "京 is 京")
    place = [text.alone(token) for token in ids].index(" is")
    assert text.window(ids[1:-1], place - 1) == Window("", " is", " ")
    first = text.window(ids[1:], 0)  # and here its first byte is not
    assert first.token == text.alone(ids[1])
    assert first.after == " is 京"
    last = text.window(ids[:-1], len(ids) - 2)  # its character is not complete in the window
    assert last.after == ""
    assert last.token == text.alone(ids[-2])


def test_a_window_ends_with_its_document_and_its_context(
    tokenizer: Any, text: TokenText, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_text, "BEFORE", 3)
    monkeypatch.setattr(token_text, "AFTER", 2)
    one, two = ([0, *ids_of(tokenizer, words)] for words in ("0123456", "789"))
    flat = [
        *one,
        *two,
    ]  # 8 + 4 tokens: a context of 6 and one that starts inside the first document
    corpus = PackedTokens(
        np.array(flat, dtype=np.int32).reshape(2, 6),
        np.array([5] * 8 + [7] * 4, dtype=np.int32).reshape(2, 6),
        {},
    )
    assert window_of(corpus, 0, text) == Window("", "<s>", "01")
    assert window_of(corpus, 2, text) == Window("<s>0", "1", "23")
    assert window_of(corpus, 5, text) == Window("123", "4", "")
    assert window_of(corpus, 6, text) == Window("", "5", "6")
    assert window_of(corpus, 7, text) == Window("5", "6", "")
    assert window_of(corpus, 8, text) == Window("", "<s>", "78")
    assert window_of(corpus, 11, text) == Window("<s>78", "9", "")

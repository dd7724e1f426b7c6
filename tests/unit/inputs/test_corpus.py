"""Pack documents into contexts, split and store them; the sources of a corpus."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import small_models
import zarr

from ghosttrack.errors import UserError
from ghosttrack.facts import fact_text
from ghosttrack.inputs import corpus, corpus_split, documents, hub, repeats
from ghosttrack.inputs.corpus import Packer, SplitPaths, Stream
from ghosttrack.settings import CorpusSettings

SEPARATOR = 0


class Letters:
    """A tokenizer whose tokens are the code points of a text."""

    bos_token_id, eos_token_id = SEPARATOR, None

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


def places(folder: Path) -> dict[str, SplitPaths]:
    return {
        side: SplitPaths(folder / f"{side}.zarr", folder / f"{side}.json")
        for side in ("train", "heldout")
    }


def build(
    folder: Path, streams: Sequence[Stream], **settings: Any
) -> tuple[corpus.PackedTokens, corpus.PackedTokens]:
    where = places(folder)
    corpus.build(
        streams,
        Letters(),
        where["train"],
        where["heldout"],
        CorpusSettings(**settings),
        {"source": "test"},
    )
    return corpus.read_tokens(*where["train"]), corpus.read_tokens(*where["heldout"])


def numbered(prefix: str = "text", count: int = 1000) -> Iterator[str]:
    return (f"{prefix} number {number} of many" for number in range(count))


def packed_slowly(
    texts: Iterable[list[int]], contexts: int, context: int
) -> tuple[list[int], list[int]]:
    """Reference implementation, one token at a time."""
    tokens: list[int] = []
    owners: list[int] = []
    for number, text in enumerate(texts):
        for token in [SEPARATOR, *text]:
            if len(tokens) % context == 0 and token != SEPARATOR:
                tokens.append(SEPARATOR)
                owners.append(number)
            tokens.append(token)
            owners.append(number)
    return tokens[: contexts * context], owners[: contexts * context]


@pytest.mark.parametrize("block", [1, 7, 20, 99])
@pytest.mark.parametrize("context", [3, 5, 8])
def test_packing_equals_the_one_token_at_a_time_reference(context: int, block: int) -> None:
    generator = np.random.default_rng(context)
    texts = [generator.integers(1, 99, generator.integers(1, 20)).tolist() for _ in range(60)]
    packed, documents = np.full((20, context), -2), np.full((20, context), -2)

    def write(start: int, tokens: npt.NDArray[np.int32], owners: npt.NDArray[np.int32]) -> None:
        assert start % block == 0
        assert (packed[start : start + block] == -2).all()
        packed[start : start + len(tokens)], documents[start : start + len(tokens)] = tokens, owners

    packer = Packer(20, context, SEPARATOR, write, block)
    for number, text in enumerate(texts):
        packer.add(number, text)
    tokens, owners = packed_slowly(texts, 20, context)
    assert packer.full
    assert packed.ravel().tolist() == tokens
    assert documents.ravel().tolist() == owners
    assert packer.used == owners[-1] + 1
    assert (packed[:, 0] == SEPARATOR).all()


def test_the_origin_of_every_row_is_its_document_position_and_token(tmp_path: Path) -> None:
    found, _ = build(
        tmp_path, [Stream("a", numbered(), 1.0)], tokens=500, heldout_tokens=60, context=20
    )
    text = ""
    for row in range(found.tokens.size):
        place = found.origin(row)
        assert (place.context, place.position) == (row // 20, row % 20)
        assert place.token == found.tokens.ravel()[row]
        text += (
            chr(place.token)
            if place.document == found.origin(0).document and place.token != SEPARATOR
            else ""
        )
    assert re.fullmatch(r"text number \d+ of many", text)


def test_no_text_is_in_both_parts_and_both_are_full(tmp_path: Path) -> None:
    train, heldout = build(
        tmp_path, [Stream("a", numbered(), 1.0)], tokens=4000, heldout_tokens=500, context=64
    )
    assert train.tokens.shape == (63, 64)
    assert heldout.tokens.shape == (8, 64)
    assert train.tokens.dtype == np.int32
    assert not set(train.documents.ravel()) & set(heldout.documents.ravel())
    assert not whole_texts(train) & whole_texts(heldout)
    assert train.manifest["documents"] == len(np.unique(train.documents))
    assert train.manifest["tokens"] == train.tokens.size


def whole_texts(side: corpus.PackedTokens) -> set[str]:
    found = {
        "".join(map(chr, side.tokens[(side.documents == n) & (side.tokens != SEPARATOR)]))
        for n in np.unique(side.documents)
    }
    return found & set(numbered())


def test_the_part_of_a_text_does_not_depend_on_its_position_in_the_corpus(tmp_path: Path) -> None:
    sizes = {"tokens": 8000, "heldout_tokens": 2000, "context": 50}
    train, heldout = build(tmp_path / "a", [Stream("a", numbered(), 1.0)], **sizes)
    other_train, other_heldout = build(
        tmp_path / "b", [Stream("a", iter(list(numbered())[::-1]), 1.0)], **sizes
    )
    longer, _ = build(
        tmp_path / "c",
        [Stream("a", numbered(), 1.0)],
        **{**sizes, "tokens": 16_000, "heldout_tokens": 4000},
    )
    assert whole_texts(train) <= whole_texts(longer)
    settings = CorpusSettings(**sizes)
    share = corpus_split.heldout_share(settings)
    below = [int.from_bytes(corpus._digest(text)[:8], "big") < share * 2**64 for text in numbered()]
    assert np.mean(below) == pytest.approx(share, abs=0.04)
    for side, other in (
        (train, other_heldout),
        (heldout, other_train),
        (longer, heldout),
        (longer, other_heldout),
    ):
        assert not whole_texts(side) & whole_texts(other)


def test_repeated_documents_are_dropped_whatever_their_spacing(tmp_path: Path) -> None:
    texts = chain.from_iterable((text, text.replace(" ", "  "), text) for text in numbered())
    train, _ = build(
        tmp_path, [Stream("a", texts, 1.0)], tokens=5000, heldout_tokens=500, context=100
    )
    flat = "".join(map(chr, train.tokens.ravel()))
    assert "  " not in flat
    assert flat.count("number 15 of") <= 1


def test_streams_are_mixed_by_tokens_not_by_documents(tmp_path: Path) -> None:
    long = (f"{number} " + "long " * 40 for number in range(1000))
    streams = [Stream("long", long, 0.75), Stream("short", numbered("s"), 0.25)]
    train, _ = build(tmp_path, streams, tokens=8000, heldout_tokens=800, context=100)
    shares = train.manifest["tokens_by_source"]
    assert shares["short"] / sum(shares.values()) == pytest.approx(0.25, abs=0.03)


def test_a_mixture_continues_without_a_source_that_has_ended(tmp_path: Path) -> None:
    streams = [Stream("long", numbered(), 0.5), Stream("short", numbered("s", 20), 0.5)]
    train, _ = build(tmp_path, streams, tokens=8000, heldout_tokens=800, context=100)
    assert train.manifest["tokens_by_source"]["short"] < 500


@pytest.mark.parametrize("gap", [" ", "  ", "\n", " \n "])
@pytest.mark.parametrize("limit", [7, 30, 10**6])
def test_a_text_that_is_tokenised_in_pieces_has_the_tokens_and_the_digest_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, limit: int, gap: str
) -> None:
    text = gap.join(
        ["some", "words", "of", "several", "lengths", "andonethatislongerthanthelimitofapiece"] * 5
    )
    whole = hashlib.sha256(" ".join(text.split()).encode()).digest()[:16]
    monkeypatch.setattr(corpus, "_BATCH_CHARACTERS", limit)
    ((found, tokens),) = corpus._tokenised(iter([text]), Letters())
    assert found == text
    assert list(tokens) == [ord(letter) for letter in text]
    assert "".join(corpus._pieces(text)) == text
    assert max(map(len, corpus._pieces(text))) <= limit
    assert corpus._digest(text) == whole


def test_pieces_of_a_long_text_have_the_tokens_of_the_whole_under_byte_pair_encoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = small_models.make_tokenizer()
    text = " ".join(islice(fact_text.corpus_documents(0), 200))
    ((_, whole),) = corpus._tokenised(iter([text]), tokenizer)
    monkeypatch.setattr(corpus, "_BATCH_CHARACTERS", 100)
    ((_, tokens),) = corpus._tokenised(iter([text]), tokenizer)
    assert list(tokens) == list(whole)


def test_a_batch_holds_no_more_texts_and_characters_than_its_limits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(corpus, "_BATCH", 3)
    monkeypatch.setattr(corpus, "_BATCH_CHARACTERS", 10)
    texts = ["a" * length for length in (1, 2, 3, 4, 9, 1, 1, 30, 5, 5, 1)]
    batches = list(corpus._batches(iter(texts)))
    assert list(chain.from_iterable(batches)) == texts
    assert [[len(text) for text in batch] for batch in batches] == [
        [1, 2, 3],
        [4],
        [9, 1],
        [1],
        [30],
        [5, 5],
        [1],
    ]


def test_a_set_of_digests_contains_all_that_were_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "_LEAST_RECENT", 10)
    digests = [
        hashlib.sha256(bytes([number % 200, number // 400])).digest() for number in range(1000)
    ]
    digests[5] = bytes(16)
    digests[6] = b"\xff" * 16
    found, known = repeats.Digests(), set[bytes]()
    for digest in digests:
        assert found.add(digest) == (digest not in known)
        known.add(digest)
        assert len(found) == len(known)


def test_reading_stops_as_soon_as_both_parts_are_full(tmp_path: Path) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        for number in chain.from_iterable(repeat(range(10**6))):
            taken += 1
            yield f"text {number} of an endless stream of documents"

    build(tmp_path, [Stream("a", endless(), 1.0)], tokens=2000, heldout_tokens=200, context=50)
    assert taken < 1000


@pytest.mark.parametrize(
    ("tokens", "heldout", "documents"),
    [
        (10**6, 100, 1000),
        (1000, 10**6, 1000),
        (10**5, 10**5, 1000),
        (30_000, 3000, 1000),
        (3000, 300, 60),
        (999, 999, 7),
        (10, 5000, 60),
        (5000, 1, 60),
    ],
)
def test_the_error_for_too_little_text_names_its_size_and_settings_that_fit(
    tmp_path: Path, tokens: int, heldout: int, documents: int
) -> None:
    sizes = {"tokens": tokens, "heldout_tokens": heldout}
    pattern = r"test, read to the end, .* [\d,]+ of [\d,]+ tokens for corpus.tokens and .* corpus.heldout_tokens\. Set .*"
    stream = [Stream("a", numbered(count=documents), 1.0)]
    with pytest.raises(UserError, match=pattern) as error:
        build(tmp_path, stream, **sizes, context=10)
    assert not list(tmp_path.iterdir())
    enough = [int(each) for each in re.findall(r"_?tokens to (\d+)", str(error.value))]
    build(
        tmp_path,
        [Stream("a", numbered(count=documents), 1.0)],
        tokens=enough[0],
        heldout_tokens=enough[1],
        context=10,
    )


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], r"test holds no text; fill it, or name another corpus\.source"),
        (["  \n"], r"test holds no text; fill it, or name another corpus\.source"),
        (
            ["a long text " * 1000],
            r"gives 1 document: .* of 1,000 tokens for corpus\.tokens .* divide the text into more",
        ),
        (["a text"], r"gives 1 document: .* divide the text into more documents"),
        (["a text"] * 5, r"gives 1 document: .* divide the text into more documents"),
        (
            [f"text {number}" for number in range(8)],
            r"gives 8 different documents: .* tokens do not fill two contexts of 50.* or lower corpus\.context",
        ),
    ],
    ids=["none", "blank", "one long", "one short", "one repeated", "eight short"],
)
def test_a_corpus_that_fits_no_sizes_is_refused_with_a_remedy(
    tmp_path: Path, texts: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=rf"^corpus\.source: .*{message}"):
        build(
            tmp_path, [Stream("a", iter(texts), 1.0)], tokens=1000, heldout_tokens=100, context=50
        )


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        build(
            tmp_path / folder,
            [Stream("a", numbered(), 1.0)],
            tokens=2000,
            heldout_tokens=200,
            context=50,
        )
    for file in (tmp_path / "a").rglob("*"):
        if file.is_file():
            assert (
                file.read_bytes()
                == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()
            )


def test_the_store_opens_in_xarray_with_its_dimensions(tmp_path: Path) -> None:
    import xarray

    train, _ = build(
        tmp_path, [Stream("a", numbered(), 1.0)], tokens=2000, heldout_tokens=200, context=50
    )
    opened = xarray.open_zarr(tmp_path / "train.zarr", consolidated=False)
    assert opened["tokens"].dims == ("context", "position")
    np.testing.assert_array_equal(opened["tokens"], train.tokens)


def test_a_damaged_missing_or_foreign_file_is_named(tmp_path: Path) -> None:
    build(tmp_path, [Stream("a", numbered(), 1.0)], tokens=2000, heldout_tokens=200, context=50)
    store, manifest = places(tmp_path)["train"]
    chunk = next(
        file
        for file in (store / "tokens").rglob("*")
        if file.is_file() and file.name != "zarr.json"
    )
    content = chunk.read_bytes()
    chunk.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=f"{chunk} is damaged"):
        corpus.read_tokens(store, manifest)
    chunk.unlink()
    with pytest.raises(UserError, match=f"{chunk} is missing"):
        corpus.read_tokens(store, manifest)
    chunk.write_bytes(content)
    (store / "extra").touch()
    with pytest.raises(UserError, match="extra is not in"):
        corpus.read_tokens(store, manifest)
    (store / "extra").unlink()
    assert corpus.read_tokens(store, manifest).tokens.shape == (40, 50)
    manifest.unlink()
    with pytest.raises(UserError, match="is missing"):
        corpus.read_tokens(store, manifest)
    assert zarr.open_group(store, mode="r").attrs["schema"] == corpus.SCHEMA


def texts_of(settings: CorpusSettings) -> list[str]:
    return [
        text for stream in documents.open_source(settings, 0).streams for text in stream.documents
    ]


def test_a_text_file_is_read_by_paragraphs_or_without_blank_lines_by_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\nstill one\n\n \ntwo\n\nthree", encoding="utf-8")
    assert texts_of(CorpusSettings(source=str(path))) == ["one\nstill one", "two", "three"]
    path.write_text("one\ntwo\nthree\n\n", encoding="utf-8")
    assert texts_of(CorpusSettings(source=str(path))) == ["one", "two", "three"]


def test_jsonl_and_parquet_are_read_from_the_named_column(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "one"}\n\n{"body": "two"}\n', encoding="utf-8")
    pd.DataFrame({"body": ["one", "two"], "text": [1, 2]}).to_parquet(tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        assert texts_of(CorpusSettings(source=str(tmp_path / name), text_column="body")) == [
            "one",
            "two",
        ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "corpus.source: .*a.txt is empty"),
        (
            "a.jsonl",
            '{"body": "one"}\n',
            "corpus.text_column: row 1 of .* has no text in 'text'; found body",
        ),
        ("a.jsonl", '{"text": 3}\n', "row 1 of .* has no text in 'text'"),
        ("a.jsonl", '{"text": "a"}\n{oops\n', "line 2 of .* is not JSON"),
        (
            "a.jsonl",
            '{"text": "a"}\n\n{"text": ' + "[" * 100_000 + "\n",
            "line 3 of .*a.jsonl holds .*nested too deeply",
        ),
        (
            "a.jsonl",
            '{"text": "a"}\n{"text": "b\\ud800"}\n',
            r"row 2 of .*'text': character 2 is .ud800, half of a surrogate pair",
        ),
        ("a.parquet", "not parquet", "is damaged or is not a parquet file"),
        ("a.doc", "word", "must end in one of .txt, .jsonl, .parquet"),
        ("missing.txt", None, "there is no file .*missing.txt"),
    ],
)
def test_a_bad_local_file_is_named_with_its_key(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        texts_of(CorpusSettings(source=str(tmp_path / name)))


def test_text_that_is_not_utf8_and_a_parquet_without_the_column_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(
        "\ufeffeins\r\nzwei ü\rZ".encode() + "ürich\n".encode("latin-1")
    )
    with pytest.raises(
        UserError,
        match="not UTF-8 text: line 3 holds the byte 0xfc at offset 18 of the file; convert",
    ):
        texts_of(CorpusSettings(source=str(tmp_path / "a.txt")))
    (tmp_path / "a.txt").write_bytes("Zürich\n".encode("utf-16"))
    with pytest.raises(
        UserError, match=r"corpus\.source: .*a\.txt is UTF-16 text: convert it to UTF-8"
    ):
        texts_of(CorpusSettings(source=str(tmp_path / "a.txt")))
    pd.DataFrame({"body": ["one"]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(
        UserError, match=r"corpus\.text_column: .* has no column 'text'; found body"
    ):
        texts_of(CorpusSettings(source=str(tmp_path / "a.parquet")))
    pd.DataFrame({"text": pd.Series([], dtype=str)}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="holds no rows"):
        texts_of(CorpusSettings(source=str(tmp_path / "a.parquet")))


def test_an_unknown_source_lists_the_choices() -> None:
    with pytest.raises(
        UserError,
        match="'wikitekst' is neither a file nor a hub data set; expected embedded, openwebtext",
    ):
        texts_of(CorpusSettings(source="wikitekst"))


def test_the_hub_is_asked_for_the_right_data_set_and_wikitext_rows_become_articles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[Any, ...]] = []

    def rows(*arguments: Any, **_: Any) -> hub.HubRows:
        asked.append(arguments)
        lines = [
            "",
            " = First = \n",
            " text \n",
            " = = Part = = \n",
            " more \n",
            " = Second = \n",
            " text \n",
        ]
        return hub.HubRows(iter([{"text": line} for line in lines]), "abc")

    monkeypatch.setattr(hub, "rows", rows)
    found = texts_of(CorpusSettings(source="wikitext-103"))
    assert [text.splitlines()[0] for text in found if text.strip()] == [
        " = First = ",
        " = Second = ",
    ]
    assert len(texts_of(CorpusSettings(source="owner/name:part@1234"))) == 7
    assert len(texts_of(CorpusSettings(source="openwebtext"))) == 7
    assert documents.open_source(CorpusSettings(source="owner/name"), 0).revision == "abc"
    assert asked == [
        ("Salesforce/wikitext", "wikitext-103-raw-v1", "train", None),
        ("owner/name", "part", "train", "1234"),
        ("Skylion007/openwebtext", None, "train", None),
        ("owner/name", None, "train", None),
    ]


def test_without_a_network_the_error_names_corpus_source_and_the_local_ways(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub

    def unreachable(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(
        UserError,
        match=r"corpus\.source: data set 'Skylion007/openwebtext' .*cannot be reached.*embedded.*\.jsonl",
    ):
        texts_of(CorpusSettings(source="openwebtext"))


def test_a_connection_that_breaks_half_way_is_the_same_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from types import SimpleNamespace

    import datasets as library
    import huggingface_hub

    def broken() -> Iterator[dict[str, str]]:
        yield {"text": "one"}
        raise ConnectionError("gone")

    monkeypatch.setattr(
        huggingface_hub.HfApi, "dataset_info", lambda *_, **__: SimpleNamespace(sha="abc")
    )
    monkeypatch.setattr(library, "load_dataset", lambda *_, **__: broken())
    with pytest.raises(UserError, match=r"corpus\.source: .* at revision abc .*cannot be reached"):
        texts_of(CorpusSettings(source="openwebtext"))


def test_the_embedded_source_mixes_text_and_statements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fact_text, "corpus_documents", lambda _seed: iter(["text"]))
    monkeypatch.setattr(fact_text, "statement_documents", lambda _seed: iter(["statement"]))
    streams = documents.open_source(
        CorpusSettings(source="embedded", statement_share=0.2), 0
    ).streams
    assert [(stream.name, stream.share) for stream in streams] == [
        ("text", 0.8),
        ("statements", 0.2),
    ]
    assert (
        len(documents.open_source(CorpusSettings(source="embedded", statement_share=0), 0).streams)
        == 1
    )


def test_a_context_longer_than_the_model_takes_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"n_positions": 32}), encoding="utf-8")
    with pytest.raises(UserError, match=r"corpus\.context: 64 .* at most 32"):
        documents.fetch(
            CorpusSettings(context=64),
            0,
            tokenizer=tmp_path / "tokenizer.json",
            model_config=config,
            train=places(tmp_path)["train"],
            heldout=places(tmp_path)["heldout"],
        )

"""Contexts before texts: read once, never judged, and shortened only by the rule that is named."""

import logging
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small_models
import torch
from small_contexts import ANSWERS, PASSAGES, table, whole

from ghosttrack.activations import example_extraction, example_tokens, packed_texts, pmi_baseline
from ghosttrack.activations.example_tokens import Encoded, encode
from ghosttrack.activations.extraction import ModelIdentity
from ghosttrack.activations.packed_texts import PackedReader
from ghosttrack.errors import UserError


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return small_models.make_tokenizer()


@pytest.fixture
def examples() -> pd.DataFrame:
    return table([passage for passage in PASSAGES for _ in range(2)], ANSWERS)


def outputs(model: Any, encoded: list[Encoded], packed: int, cached: int) -> pd.DataFrame:
    return example_extraction.extract_examples(
        model,
        ModelIdentity("tiny", "weights"),
        encoded,
        [],
        [],
        None,
        site="resid_post",
        batch=4,
        packed=packed,
        cached=cached,
    ).tokens


def test_the_model_reads_the_context_and_a_line_end_before_the_text(
    tokenizer: Any, examples: pd.DataFrame
) -> None:
    for one, passage, answer in zip(
        encode(examples, tokenizer, 200, "x"), examples["context"], ANSWERS, strict=True
    ):
        lead = f"{passage}\n" if passage else ""
        assert tokenizer.decode(whole(one)[1:]) == lead + answer
        assert tokenizer.decode(one.ids[one.answer].tolist()) == answer
        # Positions in the text do not count its context.
        assert (one.answer + one.shift).tolist() == list(range(1, len(one.answer) + 1))


def test_texts_of_a_context_share_all_of_it(tokenizer: Any, examples: pd.DataFrame) -> None:
    encoded = encode(examples, tokenizer, 200, "x")
    for first, second in ((0, 1), (2, 3)):
        assert encoded[first].prefix.tolist() == encoded[second].prefix.tolist()
        assert len(encoded[first].prefix) + 1 == encoded[first].lead


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize(("packed", "cached"), [(0, 0), (200, 200), (9, 200), (9, 0), (0, 200)])
def test_every_way_of_reading_gives_the_statistics_of_whole_texts(
    tokenizer: Any, examples: pd.DataFrame, kind: str, packed: int, cached: int
) -> None:
    model = small_models.make_model(kind)
    encoded = encode(examples, tokenizer, small_models.CONTEXT, "x")
    found = outputs(model, encoded, packed, cached)
    expected = []
    for one in encoded:
        ids = torch.tensor([whole(one)])
        with torch.no_grad():
            logs = torch.log_softmax(model(ids).logits[0].double(), dim=-1)
        expected += [
            float(logs[place - 1, ids[0, place]]) for place in (one.answer + len(one.prefix))
        ]
    np.testing.assert_allclose(found["logprob"], expected, atol=1e-4)


def count_tokens(monkeypatch: pytest.MonkeyPatch, model: Any) -> list[int]:
    """Tokens of every later pass of the model's backbone."""
    read: list[int] = []
    forward = type(model.base_model).forward

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        if options.get("input_ids") is not None:
            read.append(options["input_ids"].shape[1])
        return forward(self, *args, **options)

    monkeypatch.setattr(type(model.base_model), "forward", counted)
    return read


@pytest.mark.parametrize("packed", [9, 60])
def test_a_shared_context_is_read_once(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, packed: int
) -> None:
    model = small_models.make_model("llama")
    encoded = encode(table([PASSAGES[0]] * 30, ["Paris"] * 30), tokenizer, 64, "x")
    context, own = len(encoded[0].prefix), len(encoded[0].ids)
    read = count_tokens(monkeypatch, model)
    reader = PackedReader(model, packed, 64)
    with torch.inference_mode():
        for pack in reader.packs(encoded, range(30), 4):
            reader.final(pack)
    assert read.count(context) == 1
    # The first text that is too long to be packed is also read without a cache, as a check.
    check = context + 2 * own if packed < context + own else 0
    assert sum(read) <= context + 30 * own + check


def test_a_model_whose_cache_differs_reads_contexts_without_it(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = small_models.make_model("llama")
    encoded = encode(table([PASSAGES[0]] * 3, ANSWERS[:3]), tokenizer, 64, "x")
    monkeypatch.setattr(packed_texts, "CACHED_DIFFERENCE", {torch.float32: -1.0})
    found = outputs(model, encoded, 9, 64)
    pd.testing.assert_frame_equal(found, outputs(model, encoded, 0, 0))
    assert sum("differs by" in record.getMessage() for record in caplog.records) == 1


def test_old_caches_are_dropped_but_not_those_computed_ahead(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_models.make_model("llama")
    passages = [f"{number} is a city of gold" for number in range(8)]
    encoded = encode(table(passages, ["gold"] * 8), tokenizer, 64, "x")
    size = max(len(one.prefix) for one in encoded)
    monkeypatch.setattr(packed_texts, "CACHED_TOKENS", 3 * size)
    reader, ahead = PackedReader(model, 64), PackedReader(model, 64)
    with torch.inference_mode():
        ahead.cache_prefixes(encoded)
        for pack in reader.packs(encoded, range(8), 1):
            reader.final(pack)
            assert sum(len(key) // 8 for key in reader._caches) <= 3 * size
    assert (len(reader._caches) in (3, 4), len(ahead._caches)) == (True, 8)


def test_a_context_that_does_not_fit_is_refused_with_id_tokens_limit_and_setting(
    tokenizer: Any,
) -> None:
    long = "Paris is a city of gold and of 79 cities. " * 2_400
    assert len(long) > 100_000
    tokens = len(tokenizer(f"{long.rstrip()}\n")["input_ids"])
    frame = table(["Paris", long.rstrip()], ["gold", "Paris"])
    with pytest.raises(
        UserError,
        match=rf"data set mine, id e1: the text has \d tokens after a context of {tokens} tokens, "
        r"the model takes 64 with the first token; set long_contexts: window in the data set's file",
    ):
        encode(frame, tokenizer, 64, "mine")


def test_window_drops_the_start_of_the_context_and_scores_every_token_of_the_text_once(
    tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    long = ("Paris is a city of gold and of 79 cities. " * 2_400).rstrip()
    frame = table(["Paris", long, long, long], ["gold", "Paris is", "gold", "a city"], "window")
    with caplog.at_level(logging.WARNING, "ghosttrack"):
        encoded = encode(frame, tokenizer, 400, "mine")
    context = tokenizer(f"{long}\n")["input_ids"]
    assert encoded[0].dropped == 0
    for one, answer in zip(encoded[1:], ["Paris is", "gold", "a city"], strict=True):
        assert one.dropped % example_tokens.WINDOW_STEP == 0
        text = tokenizer(answer)["input_ids"]
        assert whole(one) == [0, *context[one.dropped :], *text]
        assert 400 - example_tokens.WINDOW_STEP < len(whole(one)) <= 400
    # Texts of one context keep the same part, so that it is read once.
    assert len({one.prefix.tobytes() for one in encoded[1:]}) == 1
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith("data set mine: 3 of 4 texts are read after a shortened context")
    assert f"up to {encoded[1].dropped} tokens are dropped" in message

    model = small_models.make_model("llama")
    model.config.max_position_embeddings = 400
    found = outputs(model, encoded, 0, 0)
    assert found.groupby("example").size().tolist() == [len(one.answer) for one in encoded]
    assert not found.duplicated(["example", "position"]).any()
    assert found["token"].tolist() == [int(one.ids[at]) for one in encoded for at in one.answer]


def test_a_text_that_is_too_long_without_its_context_is_refused_under_window(
    tokenizer: Any,
) -> None:
    frame = table(["Paris"], ["a city of gold " * 20], "window")
    with pytest.raises(UserError, match=r"id e0: the text has \d+ tokens without its context"):
        encode(frame, tokenizer, 40, "mine")


def test_texts_with_a_context_have_no_other_prompts(examples: pd.DataFrame) -> None:
    asked = examples.assign(
        text=[f"Q: {answer[0]}? A: {answer}" for answer in ANSWERS], answer_start=9
    )
    assert pmi_baseline.choose_pairs(asked, 3, 0).empty
    assert not pmi_baseline.choose_pairs(asked.assign(context=""), 3, 0).empty

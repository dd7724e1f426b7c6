"""Extraction from examples: answer tokens, activations and statistics for any batch size."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import small_models
import torch

from ghosttrack.activations import example_extraction, example_tokens, packed_texts
from ghosttrack.activations.example_extraction import ExampleTables
from ghosttrack.activations.example_tokens import Encoded, answer_tokens, encode
from ghosttrack.activations.extraction import ModelIdentity, StoreFiles
from ghosttrack.activations.reader import ActivationStore, require_same_rows
from ghosttrack.errors import UserError
from ghosttrack.inputs import models

LAYERS = [0, 2]
PARTS = [
    ("The capital of France is", " Paris", "."),
    ("The atomic number of gold is", " 79", "."),
    ("Q: Who? A:", " Ada Lovelace", ""),
    ("The capital of São Paulo is", " a 🙂 city", "!"),
    ("Is it", " gold", "? The capital"),
]


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _handle: None)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return small_models.make_tokenizer()


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> Any:
    return small_models.make_model(request.param)


@pytest.fixture
def examples() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": [f"e{number}" for number in range(len(PARTS))],
            "relation": "",
            "mode": "generated",
            "text": ["".join(part) for part in PARTS],
            "question": [f"{prompt}?" for prompt, _, _ in PARTS],
            "answer": [answer.strip() for _, answer, _ in PARTS],
            "answer_start": [len(prompt) + 1 for prompt, _, _ in PARTS],  # after the space
            "answer_end": [len(prompt + answer) for prompt, answer, _ in PARTS],
        }
    )


def spoken(tokenizer: Any, one: Encoded) -> str:
    return str(tokenizer.decode(one.ids[one.answer].tolist()))


def test_the_answer_is_the_tokens_that_overlap_its_characters_with_a_leading_space(
    tokenizer: Any, examples: pd.DataFrame
) -> None:
    for one, (prompt, answer, suffix) in zip(
        encode(examples, tokenizer, 64, "x"), PARTS, strict=True
    ):
        assert spoken(tokenizer, one) == answer
        assert one.ids[0] == 0
        assert tokenizer.decode(one.ids[1:].tolist()) == prompt + answer + suffix


@pytest.mark.parametrize(
    ("text", "answer", "offsets", "expected"),
    [
        (
            "is 42.",
            "42",
            [(0, 2), (2, 3), (3, 4), (4, 5), (5, 6)],
            [1, 2, 3],
        ),  # space, digit, digit
        ("is 42.", "42", [(0, 2), (2, 5), (5, 6)], [1]),
        ("is:42.", "42", [(0, 2), (2, 3), (3, 5), (5, 6)], [2]),  # a colon is no space
        ("A\n42", "42", [(0, 1), (1, 2), (2, 4)], [2]),  # nor is the end of a line
        ("ab  42", "42", [(0, 2), (2, 4), (4, 6)], [1, 2]),
        ("x 🙂", "🙂", [(0, 1), (1, 3), (2, 3), (2, 3)], [1, 2, 3]),  # one character, three tokens
        ("Paris.", "Paris", [(0, 6)], [0]),
        ("a b", " ", [(0, 1), (1, 3)], []),
    ],
)
def test_known_offsets_give_known_answer_tokens(
    text: str, answer: str, offsets: list[tuple[int, int]], expected: list[int]
) -> None:
    start = text.index(answer)
    assert answer_tokens(text, start, start + len(answer), offsets).tolist() == expected


@pytest.mark.parametrize(("start", "end"), [(5, 5), (6, 5), (-1, 2), (10, 999)])
def test_an_answer_that_is_empty_or_outside_the_text_names_its_example(
    tokenizer: Any, examples: pd.DataFrame, start: int, end: int
) -> None:
    examples.loc[3, ["answer_start", "answer_end"]] = [start, end]
    with pytest.raises(
        UserError, match=rf"data set facts, id e3: characters {start}\.\.{end} .* hold no answer"
    ):
        encode(examples, tokenizer, 64, "facts")


def test_a_text_longer_than_the_context_names_its_example_and_the_limit(
    tokenizer: Any, examples: pd.DataFrame
) -> None:
    longest = max(len(one.ids) for one in encode(examples, tokenizer, 64, "facts"))
    encode(examples, tokenizer, longest, "facts")
    with pytest.raises(
        UserError,
        match=rf"data set facts, id e\d: the text has {longest} tokens, the model takes {longest - 1}; shorten",
    ):
        encode(examples, tokenizer, longest - 1, "facts")


class Found(NamedTuple):
    layers: list[ActivationStore]
    embedding: ActivationStore
    tables: ExampleTables


def extract(folder: Path, model: Any, encoded: list[Encoded], batch: int) -> Found:
    made = [
        StoreFiles(folder / f"{name}.zarr", folder / f"{name}.json")
        for name in (*LAYERS, "embedding")
    ]
    tables = example_extraction.extract_examples(
        model,
        ModelIdentity("tiny", "weights"),
        encoded,
        LAYERS,
        made[:-1],
        made[-1],
        site="resid_post",
        batch=batch,
        packed=small_models.CONTEXT,
    )
    stores = [ActivationStore.open([one.store], [one.manifest]) for one in made]
    return Found(stores[:-1], stores[-1], tables)


def test_answer_tokens_that_a_store_cannot_hold_are_refused_with_their_layer(
    tmp_path: Path, tokenizer: Any, model: Any, examples: pd.DataFrame
) -> None:
    model.get_input_embeddings().weight.data[:, 3] = -90_000.0
    with pytest.raises(
        UserError, match=r"hold values beyond float16.*the largest is (89|90),\d\d\d in row \d"
    ):
        extract(tmp_path, model, encode(examples, tokenizer, 64, "x"), 2)
    assert not list(tmp_path.rglob("*.json"))


def one_by_one(model: Any, encoded: list[Encoded]) -> tuple[list[Any], pd.DataFrame]:
    """Reference: one unpadded example at a time, all logits at once."""
    states: list[list[torch.Tensor]] = [[], [], []]
    rows = []
    for number, one in enumerate(encoded):
        ids = torch.from_numpy(np.concatenate([one.prefix, one.ids])[None])
        read = one.read + len(one.prefix)
        with torch.no_grad():
            out = model(ids, output_hidden_states=True)
        log_probabilities = torch.log_softmax(out.logits[0].double(), dim=-1)
        after = [out.hidden_states[layer + 1] for layer in LAYERS]
        for kept, state in zip(states, [model.get_input_embeddings()(ids), *after], strict=True):
            kept.append(state[0, read])
        for place in read.tolist():
            predicted, token = log_probabilities[place - 1], int(ids[0, place])
            best = predicted.sort(descending=True)
            rows.append(
                {
                    "example": number,
                    "position": place - one.lead + 1,
                    "token": token,
                    "logprob": float(predicted[token]),
                    "entropy": float(-(predicted.exp() * predicted).sum()),
                    "margin": float(best.values[0] - best.values[1]),
                    "rank": best.indices.tolist().index(token),
                }
            )
    return [torch.cat(kept).numpy() for kept in states], pd.DataFrame(rows)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_every_batch_gives_what_one_example_at_a_time_gives(
    tmp_path: Path,
    model: Any,
    tokenizer: Any,
    examples: pd.DataFrame,
    batch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(example_extraction, "WINDOW_BATCHES", 2)
    monkeypatch.setattr(packed_texts, "HEAD_ROWS", 7)
    monkeypatch.setattr(packed_texts, "STATISTICS_ROWS", 3)
    encoded = encode(examples, tokenizer, 64, "x")
    found = extract(tmp_path, model, encoded, batch)
    states, tokens = one_by_one(model, encoded)
    for store, expected in zip([found.embedding, *found.layers], states, strict=True):
        np.testing.assert_allclose(store.read(), expected, rtol=2e-3, atol=1e-3)
        assert store.context is None
    pd.testing.assert_frame_equal(
        found.tables.tokens, tokens, check_dtype=False, rtol=1e-4, atol=1e-4
    )
    require_same_rows([found.embedding, *found.layers])
    assert (found.embedding.layer, found.embedding.site) == (None, "embedding")


@pytest.mark.parametrize("batch", [1, 3])
def test_a_shared_prefix_gives_what_whole_texts_give(
    tmp_path: Path,
    model: Any,
    tokenizer: Any,
    examples: pd.DataFrame,
    batch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(example_tokens, "SHARED_TOKENS", 2)
    monkeypatch.setattr(
        example_tokens, "context_of", {"capital": "Q: Who? A: Ada.\n", "symbol": ""}.__getitem__
    )
    examples["relation"], examples["mode"] = (
        ["capital", "symbol", "symbol", "capital", "capital"],
        "given",
    )
    encoded = encode(examples, tokenizer, 64, "x")
    shown = [0, *tokenizer("Q: Who? A: Ada.\n")["input_ids"]]
    assert [len(one.prefix) for one in encoded] == [
        len(shown) - 1,
        0,
        0,
        len(shown) - 1,
        len(shown) - 1,
    ]
    assert encoded[0].ids[0] == shown[-1]
    assert [tokenizer.decode(one.ids[1:].tolist()) for one in encoded] == examples["text"].tolist()
    found = extract(tmp_path, model, encoded, batch)
    states, tokens = one_by_one(model, encoded)
    for store, expected in zip([found.embedding, *found.layers], states, strict=True):
        np.testing.assert_allclose(store.read(), expected, rtol=2e-3, atol=1e-3)
    pd.testing.assert_frame_equal(
        found.tables.tokens, tokens, check_dtype=False, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("positions", "texts"),
    [
        ("last", [" Paris", " 79", " Lovelace", " gold"]),
        (
            "all",
            [
                "The capital of France is Paris.",
                "The atomic number of gold is 79.",
                "Q: Who? A: Ada Lovelace",
                "Is it gold? The capital",
            ],
        ),
    ],
)
def test_other_positions_are_read_and_the_answer_is_scored_alike(
    tmp_path: Path,
    model: Any,
    tokenizer: Any,
    examples: pd.DataFrame,
    positions: example_tokens.Positions,
    texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(example_tokens, "SHARED_TOKENS", 2)
    examples = examples.iloc[[0, 1, 2, 4]]
    answers = encode(examples, tokenizer, 64, "x")
    encoded = encode(examples, tokenizer, 64, "x", ["Q: Who? A: Ada.\n"] * 4, positions=positions)
    assert min(len(one.prefix) for one in encoded) > 2
    spoken_of = [str(tokenizer.decode(one.ids[one.read].tolist())) for one in encoded]
    assert all(
        own.endswith(text) if positions == "all" else text.endswith(own)
        for own, text in zip(spoken_of, texts, strict=True)
    )
    assert positions == "last" or spoken_of == texts
    assert [spoken(tokenizer, one) for one in encoded] == [
        spoken(tokenizer, one) for one in answers
    ]
    found = extract(tmp_path / positions, model, encoded, 2)
    states, tokens = one_by_one(model, encoded)
    for store, expected in zip([found.embedding, *found.layers], states, strict=True):
        np.testing.assert_allclose(store.read(), expected, rtol=2e-3, atol=1e-3)
    pd.testing.assert_frame_equal(
        found.tables.tokens, tokens, check_dtype=False, rtol=1e-4, atol=1e-4
    )
    plain = encode(examples, tokenizer, 64, "x", ["Q: Who? A: Ada.\n"] * 4)
    about_answers = extract(tmp_path / "answer", model, plain, 2).tables.outputs
    rows = ["row_start", "row_count"]
    pd.testing.assert_frame_equal(
        found.tables.outputs.drop(columns=rows), about_answers.drop(columns=rows), rtol=1e-4
    )
    assert found.tables.outputs["row_count"].tolist() == [len(one.read) for one in encoded]


def test_prompts_share_a_prefix_that_ends_before_the_answer(
    tokenizer: Any, examples: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example_tokens, "SHARED_TOKENS", 2)
    alike = examples.iloc[[0, 0]].assign(id=["a", "b"])
    alike.loc[alike["id"] == "b", ["text", "answer_end"]] = ["The capital of France is Paris!", 31]
    for one, whole in zip(encode(alike, tokenizer, 64, "x"), alike["text"], strict=True):
        assert tokenizer.decode([*one.prefix[1:], *one.ids]) == whole
        assert (
            len(one.prefix) == one.answer[0] + len(one.prefix) - 1
        )  # up to the token before the answer
        assert (
            one.answer[0] + one.shift == len(tokenizer("The capital of France is")["input_ids"]) + 1
        )


def test_outputs_sum_up_the_tokens_of_each_example(
    tmp_path: Path, model: Any, tokenizer: Any, examples: pd.DataFrame
) -> None:
    encoded = encode(examples, tokenizer, 64, "x")
    found = extract(tmp_path, model, encoded, 2).tables
    for number, (one, row) in enumerate(
        zip(encoded, found.outputs.to_dict("records"), strict=True)
    ):
        tokens = found.tokens[found.tokens["example"] == number]
        assert tokens.index.tolist() == list(
            range(row["row_start"], row["row_start"] + row["row_count"])
        )
        assert row["input_tokens"] == len(one.ids)
        first = tokens.iloc[0]
        expected = {
            "logprob_sum": tokens.logprob.sum(),
            "logprob_mean": tokens.logprob.mean(),
            "logprob_min": tokens.logprob.min(),
            "logprob_first": first.logprob,
            "entropy_mean": tokens.entropy.mean(),
            "entropy_first": first.entropy,
            "margin_mean": tokens.margin.mean(),
            "margin_first": first.margin,
            "rank_first": first["rank"],
        }
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-5)
        ids = torch.from_numpy(one.ids)
        loss = model(ids[None], labels=ids[None]).loss  # mean over all tokens but the first
        assert row["text_logprob_mean"] == pytest.approx(-float(loss), rel=1e-4)


def test_two_runs_write_the_same_bytes(
    tmp_path: Path, tokenizer: Any, examples: pd.DataFrame
) -> None:
    encoded = encode(examples, tokenizer, 64, "x")
    one, other = (
        extract(tmp_path / name, small_models.make_model("llama"), encoded, 2) for name in "xy"
    )
    assert [store.fingerprint() for store in one.layers] == [
        store.fingerprint() for store in other.layers
    ]
    pd.testing.assert_frame_equal(one.tables.outputs, other.tables.outputs, check_exact=True)


def test_a_different_answer_span_gives_a_different_token_hash(
    tmp_path: Path, tokenizer: Any, examples: pd.DataFrame
) -> None:
    model = small_models.make_model("gpt2")
    one = extract(tmp_path / "x", model, encode(examples, tokenizer, 64, "x"), 2)
    examples["answer_end"] += np.array([0, 0, -1, 0, 1])
    other = extract(tmp_path / "y", model, encode(examples, tokenizer, 64, "x"), 2)
    with pytest.raises(UserError, match="tokens_sha256"):
        require_same_rows([one.layers[0], other.layers[1]])


def test_logits_include_changes_after_the_unembedding(
    tmp_path: Path, tokenizer: Any, examples: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_models.make_model("llama")
    whole = type(model).forward

    def capped(self: Any, *arguments: Any, **options: Any) -> Any:
        out = whole(self, *arguments, **options)
        out.logits = 2.0 * torch.tanh(out.logits / 2.0)
        return out

    monkeypatch.setattr(type(model), "forward", capped)
    encoded = encode(examples, tokenizer, 64, "x")
    found = extract(tmp_path, model, encoded, 2).tables.tokens
    _, expected = one_by_one(model, encoded)
    np.testing.assert_allclose(found["logprob"], expected["logprob"], atol=1e-4)
    assert found["logprob"].min() > -4 - np.log(400)  # capped at 2


def test_the_script_writes_aligned_stores_and_tables(
    tmp_path: Path, tokenizer: Any, examples: pd.DataFrame
) -> None:
    from extract import extract_examples

    small_models.save(small_models.make_model("gpt2"), tokenizer, tmp_path / "model")
    examples.to_parquet(tmp_path / "examples.parquet")
    extract_examples.main(
        examples=tmp_path / "examples.parquet",
        weights=tmp_path / "model" / "model.safetensors",
        check=small_models.save_check(tmp_path),
        stores=[tmp_path / "layer_01.zarr"],
        manifests=[tmp_path / "layer_01.json"],
        embedding=tmp_path / "e.zarr",
        embedding_manifest=tmp_path / "e.json",
        counterfactual_mean=tmp_path / "background.npz",
        prompt_states=tmp_path / "prompts.npz",
        prompts=8,
        seed=0,
        tokens=tmp_path / "tokens.parquet",
        outputs=tmp_path / "outputs.parquet",
        site="resid_post",
        positions="answer",
        dataset="x",
        batch=2,
        threads=1,
        whether_true=True,
    )
    tokens, outputs = (
        pd.read_parquet(tmp_path / "tokens.parquet"),
        pd.read_parquet(tmp_path / "outputs.parquet"),
    )
    store = ActivationStore.open([tmp_path / "layer_01.zarr"], [tmp_path / "layer_01.json"])
    assert store.layer == 1
    assert store.rows == len(tokens) == outputs["row_count"].sum()
    assert tokens.columns.tolist() == [
        "example",
        "position",
        "token",
        "text",
        "logprob",
        "entropy",
        "margin",
        "rank",
    ]
    assert outputs["id"].tolist() == examples["id"].tolist()
    assert not [name for name in outputs if name.startswith("remark_")]  # no remarks in the texts
    assert outputs["pmi_prompts"].tolist() == [4] * len(examples)
    assert (
        outputs["p_true"].isna().all()
    )  # after demonstrations these texts exceed the context of 64 tokens
    assert np.isfinite(outputs[["pmi_sum", "pmi_mean", "pmi_first"]]).all(axis=None)
    with np.load(tmp_path / "background.npz") as means:
        assert means.files == ["layer_01"]
        assert means["layer_01"].shape == (len(examples), small_models.WIDTH)
    assert "".join(tokens.loc[tokens["example"] == 2, "text"]) == " Ada Lovelace"
    assert (
        models.separator(tokenizer) == example_tokens.encode(examples, tokenizer, 64, "x")[0].ids[0]
    )

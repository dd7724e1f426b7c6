"""The remark's own answer: its tokens, and their statistics in a plain pass over the whole text."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small_models
import torch

from ghosttrack.activations import example_tokens, remark_answers
from ghosttrack.activations.extraction import ModelIdentity
from ghosttrack.errors import UserError
from ghosttrack.facts import remarks, statements

IDENTITY = ModelIdentity("a", "b")
CONTEXT = "The capital of France is Paris. The capital of Peru is Lima.\n"


def read(model: Any, tokenizer: Any, examples: pd.DataFrame, packed: int = 512) -> pd.DataFrame:
    return remark_answers.read(
        model, IDENTITY, tokenizer, examples, limit=512, batch=4, packed=packed, dataset="x"
    )


def plainly(model: Any, tokenizer: Any, text: str, start: int, end: int) -> list[float]:
    """The columns of a text's characters start to end, from one pass over the whole text.

    A space before the answer counts as part of it, as for the answers of texts.
    """
    coded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    ids = torch.tensor([[tokenizer.bos_token_id, *coded["input_ids"]]])
    with torch.inference_mode():
        logs = torch.log_softmax(model(ids).logits[0].double(), dim=-1)
    places = [
        place
        for place, (first, last) in enumerate(coded["offset_mapping"])
        if (first < end and last > start) or (last == start and text[first:last] == " ")
    ]
    # The token at `place` has position place + 1 and is predicted at position `place`.
    logprob = [float(logs[place, ids[0, place + 1]]) for place in places]
    first = logs[places[0]]
    entropy = float(-(first.exp() * first).sum())
    return [sum(logprob), sum(logprob) / len(logprob), logprob[0], entropy]


@pytest.mark.parametrize("context", ["", CONTEXT])
@pytest.mark.parametrize("packed", [512, 0])
def test_the_columns_are_those_of_a_plain_pass_over_the_whole_text(
    context: str, packed: int
) -> None:
    model, tokenizer = small_models.make_model("llama"), small_models.make_tokenizer()
    plain = statements.build_statements("cities", 0, 32)
    contexts = dict.fromkeys(plain["relation"], context)
    after = remarks.with_remarks(plain, list(remarks.WORDINGS), contexts)
    found = read(model, tokenizer, after, packed)
    assert list(found) == list(remark_answers.COLUMNS.values())
    assert len(found) == len(after)
    for row, values in zip(after.to_dict("records"), found.to_numpy(), strict=True):
        ending = remarks.WORDINGS[row["wording"]].rpartition("}")[2]
        start = row["remark"].removesuffix(ending).rindex(row["remark_answer"])
        expected = plainly(model, tokenizer, row["text"], start, start + len(row["remark_answer"]))
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)


def test_a_shared_prefix_that_holds_the_whole_remark_hides_no_token_of_its_answer() -> None:
    model, tokenizer = small_models.make_model("llama"), small_models.make_tokenizer()
    plain = statements.build_statements("cities", 0, 32)
    after = remarks.with_remarks(plain, ["passage"], {})
    one = after[after["remark"] == after["remark"].iloc[0]].reset_index(drop=True)
    assert len(one) > 1
    # For the texts themselves, the remark is in the prefix that is read once.
    shared = example_tokens.encode(one, tokenizer, 512, "x")[0]
    start = one["remark"].iloc[0].index(one["remark_answer"].iloc[0])
    assert len(shared.prefix) > len(tokenizer(one["remark"].iloc[0][:start])["input_ids"]) + 1
    for row, values in zip(
        one.to_dict("records"), read(model, tokenizer, one).to_numpy(), strict=True
    ):
        expected = plainly(model, tokenizer, row["text"], start, start + len(row["remark_answer"]))
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)


def example(remark: str, asserted: str, wording: str = "hearsay") -> pd.DataFrame:
    text = f"{remark}São Paulo is big."
    return pd.DataFrame(
        {
            "id": ["a"],
            "mode": ["given"],
            "relation": ["r"],
            "text": [text],
            "answer_start": [text.rindex("big")],
            "answer_end": [text.rindex("big") + 3],
            "remark": [remark],
            "remark_answer": [asserted],
            "wording": [wording],
        }
    )


def test_the_last_occurrence_counts_and_characters_of_several_bytes_are_whole() -> None:
    model, tokenizer = small_models.make_model("llama"), small_models.make_tokenizer()
    texts = example("Düğün in 東京, not 大阪: some say it is 東京. In fact, ", "東京")
    spans = remarks.asserted_spans(texts, "x")
    start, end = int(spans["answer_start"].iloc[0]), int(spans["answer_end"].iloc[0])
    text = texts["text"].iloc[0]
    assert text[start:end] == "東京"
    assert start == text.rindex("東京")
    encoded = example_tokens.encode(spans, tokenizer, 512, "x")[0]
    assert tokenizer.decode(encoded.ids[encoded.answer]).strip() == "東京"
    assert len(encoded.answer) >= 6  # three bytes per character
    (values,) = read(model, tokenizer, texts).to_numpy()
    expected = plainly(model, tokenizer, text, start, end)
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)


def test_the_words_at_the_end_of_every_passage_are_no_answer() -> None:
    remark = remarks.remark_of("passage", "", "The letter of Chad is", "a")
    spans = remarks.asserted_spans(example(remark, "a", "passage"), "x")
    assert spans["answer_start"].iloc[0] == remark.index("is a.") + 3


def test_a_remark_without_its_answer_is_named() -> None:
    with pytest.raises(UserError, match=r"data set x, id a: its remark .* 'Rome'"):
        remarks.asserted_spans(example("Some say it is Paris. In fact, ", "Rome"), "x")


def test_the_script_adds_the_columns_to_the_outputs_of_a_conflict_set(tmp_path: Path) -> None:
    from extract import extract_examples

    model, tokenizer = small_models.make_model("llama"), small_models.make_tokenizer()
    small_models.save(model, tokenizer, tmp_path / "model")
    plain = statements.build_statements("cities", 0, 16)
    after = remarks.with_remarks(plain, ["hearsay"], {})
    tokens = [len(ids) for ids in tokenizer(after["text"].tolist())["input_ids"]]
    after = after[np.array(tokens) < small_models.CONTEXT].reset_index(drop=True)
    assert len(after) > 4
    assert remarks.has_remarks(after)
    after.to_parquet(tmp_path / "examples.parquet")
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
        prompts=2,
        seed=0,
        tokens=tmp_path / "tokens.parquet",
        outputs=tmp_path / "outputs.parquet",
        site="resid_post",
        positions="answer",
        dataset="x",
        batch=2,
        threads=1,
        whether_true=False,
    )
    outputs = pd.read_parquet(tmp_path / "outputs.parquet")
    names = list(remark_answers.COLUMNS.values())
    assert outputs.columns[-len(names) :].tolist() == names
    np.testing.assert_allclose(outputs[names], read(model, tokenizer, after), atol=1e-4)

"""The PMI baseline: its pairs, and its means against whole texts read one at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small_models
import torch

from ghosttrack.activations import example_extraction, example_tokens, pmi_baseline
from ghosttrack.activations.extraction import ModelIdentity, StoreFiles
from ghosttrack.inputs import models

LAYERS = [0, 2]


def statements(relation: str, pairs: list[tuple[str, str]]) -> pd.DataFrame:
    prompts = [f"The capital of {subject} is" for subject, _ in pairs]
    answers = [answer for _, answer in pairs]
    start = [len(prompt) + 1 for prompt in prompts]
    return pd.DataFrame(
        {
            "relation": relation,
            "mode": "given",
            "answer": answers,
            "answer_start": start,
            "text": [
                f"{prompt} {answer}." for prompt, answer in zip(prompts, answers, strict=True)
            ],
        }
    )


@pytest.fixture
def examples() -> pd.DataFrame:
    made = [
        statements(
            "one",
            [(subject, answer) for subject in "abcde" for answer in ("Paris", "São Paulo")][:7],
        ),
        statements("two", [("x", "gold"), ("y", "gold"), ("z", "79")]),
        pd.DataFrame(
            {
                "relation": ["", "two"],
                "mode": "given",
                "answer": ["all of it", "x"],
                "answer_start": 0,
                "text": ["all of it", "x"],
            }
        ),
    ]
    return pd.concat(made, ignore_index=True)


def test_an_answer_is_paired_with_prompts_with_which_it_forms_no_example(
    examples: pd.DataFrame,
) -> None:
    pairs = pmi_baseline.choose_pairs(examples, 8, seed=0)
    assert not set(pairs["text"]) & {text.rstrip(".") for text in examples["text"]}
    spoken = [
        text[start:end]
        for text, start, end in zip(
            pairs["text"], pairs["answer_start"], pairs["answer_end"], strict=True
        )
    ]
    numbers = pmi_baseline.answer_numbers(examples)
    of_number = dict(zip(numbers, examples["answer"], strict=True))
    assert spoken == [of_number[number] for number in pairs["number"]]
    # São Paulo has prompts a to c, Paris a to d: too few others are left. 79 may follow x and y.
    assert sorted(zip(spoken, pairs["text"].str[15:16], strict=True)) == [("79", "x"), ("79", "y")]


def test_the_prompts_of_an_answer_are_bounded_and_independent_of_other_answers() -> None:
    many = statements("one", [(f"land{number}", f"town{number}") for number in range(30)])
    pairs = pmi_baseline.choose_pairs(many, 5, seed=1)
    assert (pairs.groupby("number").size() == 5).all()
    other = many.assign(relation="one")
    other.loc[0, "answer"] = "elsewhere"
    again = pmi_baseline.choose_pairs(other, 5, seed=1)
    assert pairs[pairs["number"] > 0].equals(again[again["number"] > 0])
    assert not pairs.equals(pmi_baseline.choose_pairs(many, 5, seed=2))
    assert pmi_baseline.choose_pairs(many, 0, seed=1).empty


def test_few_answers_are_paired_with_more_prompts_but_not_all() -> None:
    few = statements("one", [(f"land{number}", f"town{number % 4}") for number in range(60)])
    assert (
        pmi_baseline.choose_pairs(few, 2, seed=0).groupby("number").size() == 8
    ).all()  # of 15 prompts, at most 4 x 2
    assert (pmi_baseline.choose_pairs(few.iloc[:12], 2, seed=0).groupby("number").size() == 3).all()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("context", ["", "Q: Who? A: Ada.\n"])
def test_baselines_are_means_over_whole_texts(
    kind: str, batch: int, context: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example_tokens, "SHARED_TOKENS", 2)
    monkeypatch.setattr(example_tokens, "context_of", {"one": context, "two": ""}.__getitem__)
    model, tokenizer = small_models.make_model(kind), small_models.make_tokenizer()
    examples = pd.concat(
        [
            statements(
                "one", [("France", "Paris"), ("gold", "São Paulo"), ("a", "79"), ("bc", "Lima")]
            ),
            statements("two", [("a", "79")]),
        ],
        ignore_index=True,
    )
    found = measured(tmp_path, model, tokenizer, examples, batch)
    pairs = pmi_baseline.choose_pairs(examples, 2, 0)
    slow = [whole(model, tokenizer, context, row) for row in pairs.to_dict("records")]
    for number in range(4):
        own = [each for each, answer in zip(slow, pairs["number"], strict=True) if answer == number]
        for kind_of, column in enumerate(
            (found.logprob_sum, found.logprob_mean, found.logprob_first)
        ):
            assert column[number] == pytest.approx(
                np.mean([each[0][kind_of] for each in own]), abs=1e-4
            )
        np.testing.assert_allclose(
            found.activation[:, number], np.mean([each[1] for each in own], axis=0), atol=1e-4
        )
    assert found.prompts.tolist() == [2, 2, 2, 2, 0]
    assert np.isnan(found.logprob_sum[4])
    assert np.isnan(found.activation[:, 4]).all()


def measured(
    folder: Path, model: Any, tokenizer: Any, examples: pd.DataFrame, batch: int
) -> pmi_baseline.BaselineMeans:
    pairs = pmi_baseline.choose_pairs(examples, 2, 0)
    named = examples.assign(
        id="x", answer_end=examples["answer_start"] + examples["answer"].str.len()
    )
    encoded = example_tokens.encode(
        pd.concat([named, pairs], ignore_index=True), tokenizer, 64, "x"
    )
    baseline = pmi_baseline.PmiBaseline(
        pairs, encoded[len(examples) :], len(LAYERS), small_models.WIDTH
    )
    made = [
        StoreFiles(folder / f"{name}.zarr", folder / f"{name}.json")
        for name in (*LAYERS, "embedding")
    ]
    example_extraction.extract_examples(
        model,
        ModelIdentity("tiny", "weights"),
        encoded[: len(examples)],
        LAYERS,
        made[:-1],
        made[-1],
        site="resid_post",
        batch=batch,
        packed=64,
        pmi_baseline=baseline,
    )
    return baseline.means(examples)


def whole(
    model: Any, tokenizer: Any, context: str, row: dict[str, Any]
) -> tuple[list[float], np.ndarray]:
    """Reference: one whole text, all of its logits."""
    shown = tokenizer(context)["input_ids"] if context else []
    coded = tokenizer(row["text"], return_offsets_mapping=True)
    places = example_tokens.answer_tokens(
        row["text"], row["answer_start"], row["answer_end"], coded["offset_mapping"]
    )
    places = places + 1 + len(shown)
    ids = torch.tensor([[models.separator(tokenizer), *shown, *coded["input_ids"]]])
    out = model(ids, output_hidden_states=True)
    logs = torch.log_softmax(out.logits[0], dim=-1)[places - 1, ids[0, places]].numpy()
    states = np.stack([out.hidden_states[layer + 1][0, places].numpy().mean(0) for layer in LAYERS])
    return [logs.sum(), logs.mean(), logs[0]], states

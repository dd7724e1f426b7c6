"""Candidate scores: known tables, and the logit lens against the model's norm and head."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small_models
import torch

from ghosttrack.activations import candidates, example_extraction, example_tokens
from ghosttrack.activations.extraction import ModelIdentity, StoreFiles
from ghosttrack.errors import UserError

PARTS = [
    ("The capital of France is", " Paris", "capital"),
    ("The capital of France is", " Rome", "capital"),
    ("The capital of Italy is", " Rome", "capital"),
    ("The capital of Italy is", " Paris", "capital"),
    ("The capital of Spain is", " Madrid", "capital"),
    ("The colour of snow is", " white", "colour"),
    ("The colour of snow is", " black", "colour"),
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return small_models.make_tokenizer()


def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": [f"e{row}" for row in range(len(PARTS))],
            "text": [prompt + answer + "." for prompt, answer, _ in PARTS],
            "answer_start": [len(prompt) + 1 for prompt, _, _ in PARTS],
            "answer_end": [len(prompt + answer) for prompt, answer, _ in PARTS],
            "relation": [relation for _, _, relation in PARTS],
            "mode": "given",
        }
    )


def collect(
    folder: Path, model: Any, tokenizer: Any, batch: int
) -> tuple[candidates.Candidates, list[example_tokens.Encoded]]:
    examples = frame()
    encoded = example_tokens.encode(examples, tokenizer, 64, "x", contexts=[""] * len(examples))
    among = candidates.Candidates(model, encoded, examples["relation"].tolist())
    files = StoreFiles(folder / f"{batch}.zarr", folder / f"{batch}.json")
    other = StoreFiles(folder / f"e{batch}.zarr", folder / f"e{batch}.json")
    example_extraction.extract_examples(
        model,
        ModelIdentity("tiny", "w"),
        encoded,
        [0],
        [files],
        other,
        site="resid_post",
        batch=batch,
        packed=64,
        candidates=among,
    )
    return among, encoded


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_states_and_lens_are_what_the_model_computes_for_each_prompt_alone(
    tmp_path: Path, tokenizer: Any, architecture: str
) -> None:
    model = small_models.make_model(architecture).eval()
    among, encoded = collect(tmp_path, model, tokenizer, batch=2)
    states, table = among.states(), among.table()
    block = among.blocks[0]
    norm: Any = candidates.final_norm(model, encoded[0])
    assert norm is getattr(model.base_model, "ln_f" if architecture == "gpt2" else "norm")
    head: Any = model.get_output_embeddings()
    # " Paris" is one token, so the first tokens of capitals differ; colours begin with a space.
    starts = [int(one.answer[int(row >= 5)]) for row, one in enumerate(encoded)]
    hidden, logits = [], []
    for one, at in zip(encoded, starts, strict=True):
        with torch.no_grad():
            made = model(torch.from_numpy(one.ids[:at][None]), output_hidden_states=True)
            hidden.append(made.hidden_states[block + 1][0, -1])
            logits.append((made.logits[0, -1], head(norm(hidden[-1]))))
    np.testing.assert_allclose(
        states.blocks[block][states.prompt].astype(float),
        torch.stack(hidden).numpy(),
        atol=2e-3,
        rtol=2e-3,
    )
    first = np.array([one.ids[at] for one, at in zip(encoded, starts, strict=True)])
    np.testing.assert_allclose(
        states.unembedding[states.answer].astype(float),
        model.get_output_embeddings().weight.detach()[first],
        atol=1e-3,
    )
    capital = np.arange(5)  # the colours have a single prompt: nothing to compare
    assert table.iloc[5:].isna().all(axis=None)
    tokens, answer = np.unique(first[capital], return_inverse=True)
    rows = [0, 2, 4]  # one text of each prompt
    for place, prefix in enumerate((candidates.FINAL, candidates.LENS)):
        expected = candidates.candidate_scores(
            np.stack([logits[row][place].numpy()[tokens] for row in rows]),
            np.array([0, 0, 1, 1, 2]),
            answer,
        )
        found = table[[f"{prefix}_{score}" for score in candidates.SCORES]].to_numpy()[capital]
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_the_batch_size_does_not_matter(tmp_path: Path, tokenizer: Any) -> None:
    model = small_models.make_model("llama").eval()
    one, other = (collect(tmp_path, model, tokenizer, batch)[0].table() for batch in (1, 16))
    np.testing.assert_allclose(one, other, atol=1e-3)


def test_a_known_table_has_known_scores() -> None:
    logits = np.array([[9.0, 1, 0], [0, 2, 0], [0, 0, 4]], dtype=np.float32)
    prompt, answer = np.repeat(np.arange(3), 3), np.tile(np.arange(3), 3)
    table = pd.DataFrame(
        candidates.candidate_scores(logits, prompt, answer), columns=candidates.SCORES
    )
    right = table[prompt == answer]
    assert (right["lead"] > 0).all()
    assert (right["rank"] == 0).all()
    assert (table[prompt != answer]["lead"] < 0).all()
    np.testing.assert_allclose(
        np.exp(table["sinkhorn"].to_numpy()).reshape(3, 3).sum(axis=1), 1, rtol=1e-5
    )
    np.testing.assert_allclose(
        np.exp(table["sinkhorn"].to_numpy()).reshape(3, 3).sum(axis=0), 1, rtol=0.03
    )
    z_logits = table["z_logit"].to_numpy().reshape(3, 3)
    np.testing.assert_allclose(z_logits.sum(axis=1), 0, atol=1e-5)


def test_sinkhorn_corrects_an_answer_that_is_likely_after_every_prompt() -> None:
    logits = np.array(
        [[5.0, 4], [5, 1]], dtype=np.float32
    )  # the first answer always wins by itself
    shares = np.exp(candidates.sinkhorn(logits))
    assert shares[0, 1] > 0.7
    assert shares[1, 0] > 0.7
    rng = np.random.default_rng(0)
    many = rng.standard_normal((30, 12)).astype(np.float32)
    moved = many + rng.standard_normal((30, 1)) + rng.standard_normal((1, 12))
    np.testing.assert_allclose(
        candidates.sinkhorn(many), candidates.sinkhorn(moved.astype(np.float32)), atol=1e-3
    )
    np.testing.assert_allclose(np.exp(candidates.sinkhorn(many)).sum(axis=0), 30 / 12, rtol=1e-2)


def test_many_prompts_are_compared_table_by_table(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_models.make_model("gpt2").eval()
    among, _ = collect(tmp_path, model, tokenizer, batch=4)
    whole = among.table()
    monkeypatch.setattr(candidates, "MAX_PROMPTS", 2)
    parts = among.table()
    assert parts.iloc[:2].notna().all(axis=None)  # France and Spain together, Italy by itself
    assert parts.iloc[2:4].isna().all(axis=None)
    assert not np.allclose(parts.iloc[:2], whole.iloc[:2])


@pytest.mark.parametrize(
    ("count", "blocks"), [(1, []), (2, [0]), (12, [9, 10]), (30, [23, 25, 27, 28])]
)
def test_the_states_of_the_last_block_are_never_kept(count: int, blocks: list[int]) -> None:
    assert candidates.read_blocks(count) == blocks


def test_written_states_are_read_back_and_those_of_other_examples_are_refused(
    tmp_path: Path,
) -> None:
    made = candidates.States(
        {3: np.ones((2, 4), "f2")},
        np.zeros((2, 4), "f2"),
        np.array([0, 1, 1]),
        np.zeros((2, 4), dtype="f2"),
        np.array([0, 1, 0]),
    )
    with (tmp_path / "prompts.npz").open("wb") as stream:
        candidates.write(stream, made)
    found = candidates.read(tmp_path / "prompts.npz", 3)
    assert list(found.blocks) == [3]
    np.testing.assert_array_equal(found.prompt, made.prompt)
    with pytest.raises(UserError, match="prompts of other examples; expected those of 4: delete"):
        candidates.read(tmp_path / "prompts.npz", 4)


def test_tokens_that_all_answers_of_a_relation_begin_with_are_part_of_the_prompt(
    tmp_path: Path, tokenizer: Any
) -> None:
    examples = frame()
    numbers = [("The atomic number of gold is", " 79"), ("The atomic number of tin is", " 50")]
    for row, (prompt, answer) in enumerate(
        numbers, start=5
    ):  # the tokenizer splits " 79" into a space and digits
        examples.loc[row, ["text", "answer_start", "answer_end"]] = [
            f"{prompt}{answer}.",
            len(prompt) + 1,
            len(prompt + answer),
        ]
    encoded = example_tokens.encode(examples, tokenizer, 64, "x", contexts=[""] * len(examples))
    model = small_models.make_model("llama").eval()
    among = candidates.Candidates(model, encoded, examples["relation"].tolist())
    files = [StoreFiles(tmp_path / f"{name}.zarr", tmp_path / f"{name}.json") for name in "ab"]
    example_extraction.extract_examples(
        model,
        ModelIdentity("tiny", "w"),
        encoded,
        [0],
        files[:1],
        files[1],
        site="resid_post",
        batch=4,
        packed=64,
        candidates=among,
    )
    assert among.table().notna().all(axis=None)
    states, own = among.states(), encoded[6]
    at = int(own.answer[1])
    assert tokenizer.decode([int(own.ids[at])]) == "5"
    with torch.no_grad():
        made = model(torch.from_numpy(own.ids[:at][None]), output_hidden_states=True)
        words = model.get_input_embeddings()(torch.from_numpy(own.ids[own.lead : at])).mean(dim=0)
    block = among.blocks[0]
    np.testing.assert_allclose(
        states.blocks[block][states.prompt[6]].astype(float),
        made.hidden_states[block + 1][0, -1],
        atol=2e-3,
        rtol=2e-3,
    )
    np.testing.assert_allclose(states.words[states.prompt[6]].astype(float), words, atol=1e-3)


def test_a_model_that_needs_more_than_a_norm_before_its_head_has_no_lens(
    tmp_path: Path, tokenizer: Any
) -> None:
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=400,
        hidden_size=16,
        word_embed_proj_dim=8,
        num_hidden_layers=4,
        num_attention_heads=2,
        ffn_dim=32,
        max_position_embeddings=64,
    )
    among, _ = collect(tmp_path, OPTForCausalLM(config).eval(), tokenizer, batch=4)
    table, states = among.table(), among.states()
    assert states.words.shape[1] == states.unembedding.shape[1] == 8
    assert states.blocks[among.blocks[0]].shape[1] == 16
    assert table.filter(like="lens_").isna().all(axis=None)
    assert table.filter(like="final_").iloc[:5].notna().all(axis=None)

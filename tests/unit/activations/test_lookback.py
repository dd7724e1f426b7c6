"""Lookback ratios are those of the model's own attention weights, however the texts are read."""

from pathlib import Path
from typing import Any

import architectures
import numpy as np
import pytest
import small_models
import torch
from small_contexts import ANSWERS, PASSAGES, table, whole

from ghosttrack.activations import example_extraction, lookback
from ghosttrack.activations.example_tokens import Encoded, encode
from ghosttrack.activations.extraction import ModelIdentity
from ghosttrack.activations.packed_texts import PackedReader
from ghosttrack.errors import UserError


@pytest.fixture(scope="module")
def encoded() -> list[Encoded]:
    examples = table([passage for passage in PASSAGES for _ in range(2)], ANSWERS)
    return encode(examples, small_models.make_tokenizer(), small_models.CONTEXT, "x")


def read(model: Any, encoded: list[Encoded], packed: int = 0, cached: int = 0) -> lookback.Ratios:
    attended = lookback.Lookback(model, encoded)
    example_extraction.extract_examples(
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
        lookback=attended,
    )
    return attended.ratios()


def reference(model: Any, encoded: list[Encoded]) -> Any:
    """Ratios of the weights that eager attention returns, (answer tokens, layers x heads)."""
    model.set_attn_implementation("eager")
    rows = []
    for one in encoded:
        with torch.no_grad():
            given = model(torch.tensor([whole(one)]), output_attentions=True).attentions
        found = [weights for weights in given if weights is not None]  # None: no attention
        begin = len(one.prefix) + int(one.answer[0])
        for place in one.answer + len(one.prefix):
            weights = torch.cat([layer[0, :, place] for layer in found])  # (heads, keys)
            context = weights[:, :begin].mean(dim=1)
            own = weights[:, begin : place + 1].mean(dim=1)
            rows.append((context / (context + own)).numpy())
    model.set_attn_implementation("sdpa")
    return np.array(rows)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize(("packed", "cached"), [(0, 0), (200, 200), (9, 200), (9, 0)])
def test_every_way_of_reading_gives_the_ratios_of_the_attention_weights(
    encoded: list[Encoded], kind: str, packed: int, cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookback, "WEIGHTS", 60)  # an answer is computed in several parts
    model = small_models.make_model(kind)
    found = read(model, encoded, packed, cached)
    expected = reference(model, encoded)
    np.testing.assert_allclose(found.ratio, expected, atol=1e-3)
    assert np.ptp(expected) > 0.05
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    assert found.layer.tolist() == np.repeat(range(layers), heads).tolist()
    assert found.head.tolist() == [*range(heads)] * layers


@pytest.mark.parametrize("name", ["zamba", "zamba2"])
def test_blocks_that_share_an_attention_module_have_ratios_of_their_own(
    encoded: list[Encoded], name: str
) -> None:
    model = architectures.make(name, vocab_size=400)
    found = read(model, encoded)
    np.testing.assert_allclose(found.ratio, reference(model, encoded), atol=1e-3)
    kinds = model.config.layer_types
    assert {*found.layer.tolist()} == {at for at, kind in enumerate(kinds) if "hybrid" in kind}


def test_the_pass_itself_and_later_passes_are_unchanged(encoded: list[Encoded]) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model = small_models.make_model("llama")
    usual = dict(ALL_ATTENTION_FUNCTIONS)
    ids = torch.tensor([whole(encoded[0])])
    with torch.no_grad():
        before = model(ids).logits
        with lookback.Lookback(model, encoded).watching():
            assert torch.equal(model(ids).logits, before)
    assert dict(ALL_ATTENTION_FUNCTIONS) == usual


def test_a_model_with_attention_of_its_own_has_no_ratios(encoded: list[Encoded]) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    vocabulary = max(max(whole(one)) for one in encoded) + 1
    model = BloomForCausalLM(
        BloomConfig(vocab_size=vocabulary, hidden_size=16, n_layer=2, n_head=2)
    ).eval()
    found = read(model, encoded)
    assert found.ratio.shape == (sum(len(one.answer) for one in encoded), 0)


def test_a_file_of_other_answers_is_refused(encoded: list[Encoded], tmp_path: Path) -> None:
    found = read(small_models.make_model("gpt2"), encoded)
    lookback.write(tmp_path / "lookback.npz", found)
    again = lookback.read(tmp_path / "lookback.npz", len(found.ratio))
    np.testing.assert_array_equal(again.ratio, found.ratio)
    with pytest.raises(UserError, match=r"holds the attention of other answers.*delete"):
        lookback.read(tmp_path / "lookback.npz", len(found.ratio) + 1)


def test_a_pass_after_the_expected_one_changes_no_ratio(encoded: list[Encoded]) -> None:
    model = small_models.make_model("llama")
    attended, reader = lookback.Lookback(model, encoded), PackedReader(model, 0)
    with attended.watching(), torch.inference_mode():
        pack = next(iter(reader.packs(encoded, range(len(encoded)), 4)))
        attended.expect(pack, range(len(pack.numbers)))
        reader.final(pack)
        attended.forget()
        before = attended.ratios().ratio.copy()
        assert before.any()
        reader.final(pack._replace(ids=pack.ids[::-1].copy()))
    np.testing.assert_array_equal(attended.ratios().ratio, before)

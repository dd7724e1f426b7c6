"""Final norm and unembedding, read without the model, give the model's logits."""

from pathlib import Path
from typing import Any

import pytest
import small_models
import torch

from ghosttrack.inputs import models
from ghosttrack.inputs.unembedding import read_unembedding
from ghosttrack.sae.logit_lens import output_tokens

SIZES: dict[str, dict[str, Any]] = {
    "gpt_neox": {"intermediate_size": 24},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "gemma": {"intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8},
    "bloom": {"n_head": 2},
}


def make(kind: str, **settings: Any) -> Any:
    if kind in ("gpt2", "llama"):
        model = small_models.make_model(kind)
    else:
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(0)
        common = {
            "vocab_size": 400,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
            "initializer_range": 0.3,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
        }
        config = AutoConfig.for_model(kind, **{**common, **SIZES[kind], **settings})
        model = AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if weight.ndim == 1:  # norms start as the identity, which would hide one that is left out
            weight.copy_(
                torch.randn(weight.shape, generator=generator)
                + (1.0 if name.endswith("weight") else 0.0)
            )
    return model


def own_logits(model: Any, h: torch.Tensor) -> torch.Tensor:
    """The model's logits (vocabulary,) if the last block returns h (d_model,)."""

    def replace(_module: Any, _arguments: Any, output: Any) -> Any:
        found = h.expand_as(models.first_tensor(output)).clone()
        return (found, *output[1:]) if isinstance(output, tuple) else found

    handle = models.blocks(model)[-1].register_forward_hook(replace)
    try:
        logits: torch.Tensor = model(input_ids=torch.tensor([[3]]), use_cache=False).logits[0, 0]
    finally:
        handle.remove()
    return logits


@pytest.mark.parametrize("kind", ["gpt2", "llama", *SIZES])
def test_the_logits_of_a_direction_equal_those_of_the_model(kind: str, tmp_path: Path) -> None:
    model = make(kind)
    model.save_pretrained(tmp_path)
    found = read_unembedding(tmp_path)
    assert found is not None
    assert found.centred == (kind not in ("llama", "gemma"))
    width, size = 16, len(found.weight)
    decoder = torch.randn(5, width, generator=torch.Generator().manual_seed(2))
    ranked = output_tokens(decoder, found, size, size)
    for entry, value, d in zip(
        ranked.entry, ranked.value, 100 * decoder, strict=True
    ):  # epsilon vanishes
        sigma = float(
            (d - d.mean()).pow(2).mean().sqrt() if found.centred else d.pow(2).mean().sqrt()
        )
        # Biases of norm and head cancel; what the head's mean token gets means nothing to a softmax.
        logits = (own_logits(model, d) - own_logits(model, -d)) / 2 * sigma / 100
        torch.testing.assert_close(
            torch.from_numpy(value),
            (logits - logits.mean())[torch.from_numpy(entry)],
            rtol=1e-4,
            atol=1e-4,
        )


def test_padding_of_the_vocabulary_is_not_a_token(tmp_path: Path) -> None:
    make("gpt2").save_pretrained(tmp_path)
    found = read_unembedding(tmp_path)
    assert found is not None
    ranked = output_tokens(torch.randn(3, 16), found, 390, 1000)
    assert ranked.entry.shape == (3, 390)
    assert ranked.entry.max() == 389


def test_weights_under_other_names_are_found_through_the_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    model = make("llama")
    model.save_pretrained(tmp_path)
    expected = read_unembedding(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({f"old.{name}": tensor for name, tensor in load_file(path).items()}, path)
    monkeypatch.setattr(models, "load_model", lambda _: model)
    found = read_unembedding(tmp_path)
    assert found is not None
    assert expected is not None
    assert torch.equal(found.weight, expected.weight)
    assert torch.equal(found.gain, expected.gain)


def test_a_head_of_its_own_is_read_though_the_configuration_ties_it(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = make("gpt2")
    assert model.config.tie_word_embeddings
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    head = torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(3))
    save_file({**load_file(path), "lm_head.weight": head}, path, {"format": "pt"})
    found = read_unembedding(tmp_path)
    assert found is not None
    assert torch.equal(found.weight, models.load_model(tmp_path).get_output_embeddings().weight)
    assert torch.equal(found.weight, head)


def test_an_unembedding_of_another_width_gives_none(tmp_path: Path) -> None:
    make("opt", word_embed_proj_dim=8).save_pretrained(tmp_path)
    assert read_unembedding(tmp_path) is None

"""The check of a model finds every fast way that is inexact, and refuses unreadable models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import architectures
import numpy as np
import pytest
import small_models
import torch
import transformers
from torch import Tensor, nn

from ghosttrack.activations import limits, model_check
from ghosttrack.activations.limits import Limits
from ghosttrack.errors import UserError

TOKENS = np.random.default_rng(0).integers(1, 128, 900)
COMMON: dict[str, Any] = {
    "vocab_size": 128,
    "num_hidden_layers": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 400,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def build(config: Any) -> Any:
    """A random model with sharp attention, so that every masking error changes its predictions."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            weight.copy_(
                torch.randn_like(weight)
                * (1.0 if "embed" in name else 1.5 * weight.shape[-1] ** -0.5)
            )
    return model


def llama(**changes: Any) -> Any:
    return build(transformers.LlamaConfig(**{**COMMON, **changes}))


def checked(model: Any, site: Any = "resid_post") -> model_check.ModelCheck:
    return model_check.check(model, TOKENS, 0, site)


def test_a_plain_model_is_read_in_every_fast_way() -> None:
    found = checked(llama())
    assert found.limits == Limits(
        packed=384, padded=160, cached=400, batched=True, skipped=True, named=True
    )
    assert {each.way for each in found.comparisons} == {
        "batched",
        "packed",
        "padded",
        "cached",
        "skipped",
    }
    assert all(each.exact and each.logprob < 1e-4 for each in found.comparisons)


@pytest.mark.parametrize(
    ("config", "packed", "padded"),
    [
        # Padding between a shared prefix and the rest counts as distance in a window.
        (transformers.MistralConfig(**COMMON, sliding_window=8), 384, 0),
        (transformers.Gemma3TextConfig(**COMMON, head_dim=8, sliding_window=8), 384, 0),
        # Windows between the lengths of the test sequences.
        (transformers.MistralConfig(**COMMON, sliding_window=100), 384, 32),
        (transformers.MistralConfig(**COMMON, sliding_window=300), 384, 160),
        # Its local attention counts places in the packed sequence, so texts push each other out of
        # the window.
        (
            transformers.GPTNeoConfig(
                vocab_size=128,
                num_layers=4,
                hidden_size=32,
                num_heads=4,
                window_size=8,
                attention_types=[[["global", "local"], 2]],
                max_position_embeddings=400,
            ),
            0,
            0,
        ),
        # ALiBi: the model takes no position ids.
        (transformers.BloomConfig(vocab_size=128, n_layer=4, hidden_size=32, n_head=4), 0, 160),
        (
            transformers.MptConfig(
                vocab_size=128, n_layers=4, d_model=32, n_heads=4, max_seq_len=400
            ),
            0,
            0,
        ),
    ],
)
def test_limits_end_where_windows_and_relative_positions_make_a_way_inexact(
    config: Any, packed: int, padded: int
) -> None:
    found = checked(build(config)).limits
    assert (found.packed, found.padded) == (packed, padded)
    assert found.batched
    assert found.cached


def longrope(original: int) -> dict[str, Any]:
    """Position scaling that changes in texts of more than `original` tokens."""
    return {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": original,
        "short_factor": [1.0] * 4,
        "long_factor": [1.5, 2.0, 3.0, 4.0],
    }


@pytest.mark.parametrize("original", [16, 100, 300])
def test_no_fast_way_crosses_a_length_at_which_positions_are_scaled_otherwise(
    original: int,
) -> None:
    found = checked(llama(rope_parameters=longrope(original)))
    assert max(found.limits[:3]) < original
    assert found.limits.padded <= found.limits.cached
    # Cached keys of a text below that length are wrong beyond it; those of a longer prompt are not.
    assert not next(
        each for each in found.comparisons if each.way == "cached" and each.tokens == original + 2
    ).exact


def test_a_cache_that_is_wrong_for_some_prompts_alone_is_not_used() -> None:
    found = checked(architectures.make("doge")).limits
    assert (found.cached, found.padded) == (0, 0)


def test_padded_batches_are_limited_by_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = model_check._continued

    def continued(model: Any, text: model_check.Ids, tokens: int, way: Any) -> tuple[float, float]:
        return (0.0, 1.0) if way == "cached" else whole(model, text, tokens, way)

    monkeypatch.setattr(model_check, "_continued", continued)
    found = checked(llama())
    assert (found.limits.padded, found.limits.cached) == (0, 0)
    assert all(each.exact for each in found.comparisons if each.way == "padded")


@pytest.mark.parametrize("way", ["packed", "batched", "skipped", "cached", "padded"])
def test_continuations_have_a_smaller_tolerance(way: str) -> None:
    continued = way in ("cached", "padded")
    assert model_check.Comparison(way, 32, np.nan, 4e-4).exact
    assert model_check.Comparison(way, 32, np.nan, 8e-4).exact != continued
    assert not model_check.Comparison(way, 32, np.nan, 2e-3).exact
    assert not model_check.Comparison(way, 32, 2e-3, 0.0).exact


@pytest.mark.parametrize("context", [16, 20, 40])
def test_a_model_with_a_short_context_is_read_in_every_fast_way(context: int) -> None:
    assert checked(llama(max_position_embeddings=context)).limits == small_models.exact(context)


def test_the_cache_is_not_used_beyond_an_untested_window() -> None:
    found = checked(
        llama(
            max_position_embeddings=8192,
            rope_parameters={
                "rope_type": "dynamic",
                "factor": 2.0,
                "rope_theta": 1e4,
                "original_max_position_embeddings": 4096,
            },
        )
    ).limits
    assert found == Limits(
        packed=384, padded=160, cached=4096, batched=True, skipped=True, named=True
    )


def test_dynamically_scaled_positions_limit_every_way_to_the_training_context() -> None:
    rope = {
        "rope_type": "dynamic",
        "factor": 4.0,
        "rope_theta": 1e4,
        "original_max_position_embeddings": 100,
    }
    assert checked(llama(rope_parameters=rope)).limits == Limits(
        100, 100, 100, batched=True, skipped=True, named=True
    )


def test_a_model_without_a_context_limit_has_an_unlimited_cache() -> None:
    assert (
        checked(
            build(transformers.BloomConfig(vocab_size=128, n_layer=4, hidden_size=32, n_head=4))
        ).limits.cached
        > 10**9
    )


# ---- inexact fast ways
def blind(options: dict[str, Any]) -> None:
    if options.get("attention_mask") is not None and options["attention_mask"].dim() == 4:
        options["attention_mask"] = None


def unplaced(options: dict[str, Any]) -> None:
    if options.get("attention_mask") is not None and options["attention_mask"].dim() == 4:
        options["position_ids"] = None


def refusing(options: dict[str, Any]) -> None:
    if options.get("attention_mask") is not None and options["attention_mask"].dim() == 4:
        raise ValueError("masks of four dimensions are not understood")


@pytest.mark.parametrize("wrong", [blind, unplaced, refusing])
def test_a_model_that_reads_packed_texts_incorrectly_reads_them_alone(
    wrong: Callable[[dict[str, Any]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llama()
    whole = type(model.base_model).forward

    def forward(self: Any, **options: Any) -> Any:
        wrong(options)
        return whole(self, **options)

    monkeypatch.setattr(type(model.base_model), "forward", forward)
    found = checked(model)
    assert found.limits.packed == 0
    assert found.limits.padded == 160
    for packed in (each for each in found.comparisons if each.way == "packed"):
        assert (
            packed.problem.startswith("ValueError: masks")
            if wrong is refusing
            else packed.hidden > 0.1
        )


class _RowsMeet(nn.Module):
    """Adds a little of the batch mean to a block's output, so that texts influence each other."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *arguments: Any, **options: Any) -> Any:
        out: Tensor = self.block(*arguments, **options)
        return out + 0.3 * (out.mean(dim=0, keepdim=True) - out) if len(out) > 1 else out


def test_inputs_that_influence_each_other_in_a_batch_are_read_one_by_one() -> None:
    model = llama()
    model.model.layers[1] = _RowsMeet(model.model.layers[1])
    model.model.layers[1].attention_type = "full_attention"
    found = checked(model).limits
    assert not found.batched
    assert found.padded == 0
    assert found.packed == 384  # one sequence is one row


class _ReadsTheFirst(nn.Module):
    """A block that also reads the output of the first block, as value residuals do."""

    def __init__(self, block: nn.Module, first: Any) -> None:
        super().__init__()
        self.block = block
        self.kept: Tensor
        first.self_attn.register_forward_hook(
            lambda _module, _arguments, output: setattr(self, "kept", output[0])
        )

    def forward(self, hidden: Tensor, **options: Any) -> Any:
        out: Tensor = self.block(hidden, **options) + self.kept[:, : hidden.shape[1]]
        self.kept = torch.zeros_like(out)  # a skipped block leaves nothing
        return out


def test_blocks_are_not_skipped_if_later_ones_read_more_than_the_residual_stream() -> None:
    model = llama()
    model.model.layers[3] = _ReadsTheFirst(model.model.layers[3], model.model.layers[0])
    found = checked(model)
    assert not found.limits.skipped
    assert found.limits.batched


# ---- models that are refused
def two_ways(model: Any) -> Any:
    model.config.is_causal = False
    return model


def test_a_bidirectional_model_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"LlamaForCausalLM is not causal: .* choose a causal language model"
    ):
        checked(two_ways(llama()))


def test_a_block_that_does_not_read_the_one_below_is_refused() -> None:
    model = llama()
    model.model.layers[1].register_forward_pre_hook(
        lambda _module, arguments: (2.0 * arguments[0], *arguments[1:])
    )
    with pytest.raises(UserError, match="the input of block 1 is not the output of block 0"):
        checked(model)


def test_a_model_whose_weights_are_damaged_is_refused() -> None:
    model = llama()
    model.model.layers[2].mlp.up_proj.weight[3, 4] = torch.nan
    with pytest.raises(UserError, match="hidden states of ordinary text are NaN or infinite"):
        checked(model)


def test_a_model_that_fails_on_an_ordinary_text_is_refused_with_its_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = llama()

    def fails(*_: Any, **__: Any) -> Any:
        raise ImportError("kernels are needed\nand more")

    monkeypatch.setattr(type(model.base_model), "forward", fails)
    with pytest.raises(
        UserError,
        match=r"cannot read a text of 32 tokens \(ImportError: kernels are needed\); choose",
    ):
        checked(model)


class _Remembers(nn.Module):
    """A block that shifts its output by the length of the longest text so far."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.longest = 32

    def forward(self, hidden: Tensor, **options: Any) -> Any:
        self.longest = max(self.longest, hidden.shape[1])
        out: Tensor = self.block(hidden, **options)
        return out * (1.0 + 0.01 * (self.longest - 32))


def test_a_model_that_keeps_state_of_longer_texts_is_refused() -> None:
    model = llama()
    model.model.layers[1] = _Remembers(model.model.layers[1])
    model.model.layers[1].attention_type = "full_attention"
    with pytest.raises(
        UserError, match="gives other hidden states for the same text after longer texts"
    ):
        checked(model)


def test_a_model_that_cannot_read_the_context_of_its_configuration_is_refused() -> None:
    model = build(
        transformers.GPT2Config(vocab_size=128, n_layer=2, n_embd=32, n_head=4, n_positions=64)
    )
    model.config.n_positions = 80
    with pytest.raises(
        UserError,
        match=r"GPT2LMHeadModel cannot read a text of 80 tokens \(IndexError: .*\), though its config",
    ):
        checked(model)


def test_an_out_of_memory_error_is_not_a_result_of_the_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(model_check, "_packed", full)
    with pytest.raises(torch.OutOfMemoryError):
        checked(llama())


def test_a_site_that_a_model_lacks_is_refused_only_if_it_is_requested() -> None:
    granite = build(transformers.GraniteConfig(**COMMON, residual_multiplier=0.5))
    assert "has no two modules" in str(checked(granite).sublayers)
    with pytest.raises(
        UserError, match=r"activations\.site: block 0 of GraniteForCausalLM .*; use resid_post"
    ):
        checked(granite, "mlp_out")


def test_a_model_that_replaces_its_own_modules_while_it_reads_is_refused() -> None:
    sparse = architectures.make(
        "big_bird", attention_type="block_sparse", block_size=16, num_random_blocks=3
    )
    with pytest.raises(
        UserError,
        match=r"BigBirdForCausalLM replaces its own modules while it reads \(.* became BigBird",
    ):
        checked(sparse)


@pytest.mark.parametrize(
    ("name", "named"),
    # Heads of one matrix, with capped logits, with scaled logits, with more layers; no final norm.
    [
        ("llama", True),
        ("gemma2", True),
        ("cohere", True),
        ("roberta", False),
        ("bert", False),
        ("bart", False),
    ],
)
def test_features_are_named_only_if_norm_and_unembedding_rank_tokens_as_the_model_does(
    name: str, named: bool
) -> None:
    assert checked(architectures.make(name)).limits.named == named


# ---- the job
def test_the_script_writes_the_limits_and_every_comparison_and_the_same_limits_twice(
    tmp_path: Path,
) -> None:
    import pandas as pd

    from extract import check_model

    small_models.save(
        small_models.make_model("gpt2"), small_models.make_tokenizer(), tmp_path / "model"
    )
    for name in "ab":
        check_model.main(
            weights=tmp_path / "model" / "model.safetensors",
            check=tmp_path / f"{name}.json",
            table=tmp_path / "table.csv",
            site="mlp_out",
            min_scale=1,
            threads=1,
        )
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    context = small_models.CONTEXT
    assert limits.read(tmp_path / "a.json") == Limits(
        context, context, context, batched=True, skipped=True, named=True
    )
    assert (
        json.loads((tmp_path / "a.json").read_text())["sublayers"]
        == [{"attn_out": "attn", "mlp_out": "mlp"}] * 4
    )
    table = pd.read_csv(tmp_path / "table.csv")
    assert table["exact"].all()
    assert table["logprob"].max() < 1e-4
    assert {"batched", "packed", "padded", "cached", "skipped"} == set(table["way"])


def test_a_file_without_limits_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_check.json").write_text('{"limits": {"packed": 3}}')
    with pytest.raises(
        UserError,
        match=r"model_check\.json: it does not hold the limits of a checked model; delete it",
    ):
        limits.read(tmp_path / "model_check.json")

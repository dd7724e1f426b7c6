"""attn_out and mlp_out are what a block adds to the residual stream, in every kind of block."""

from typing import Any, Literal

import pytest
import torch
import transformers
from torch import Tensor, nn

from ghosttrack.activations import hooks
from ghosttrack.errors import UserError
from ghosttrack.inputs import models, sites

LAYERS, WIDTH = 3, 32
COMMON: dict[str, Any] = {
    "vocab_size": 300,
    "num_hidden_layers": LAYERS,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
FALCON: dict[str, Any] = {
    "vocab_size": 300,
    "num_hidden_layers": LAYERS,
    "hidden_size": WIDTH,
    "num_attention_heads": 4,
}
CONFIGS: dict[str, tuple[Any, str, str]] = {
    "sequential": (transformers.LlamaConfig(**COMMON), "self_attn", "mlp"),
    "GPT-2": (
        transformers.GPT2Config(
            vocab_size=300, n_layer=LAYERS, n_embd=WIDTH, n_head=4, n_positions=64
        ),
        "attn",
        "mlp",
    ),
    "parallel": (transformers.GPTNeoXConfig(**COMMON), "attention", "mlp"),
    "norms behind (Gemma 2)": (
        transformers.Gemma2Config(**COMMON, num_key_value_heads=2, head_dim=8),
        "post_attention_layernorm",
        "post_feedforward_layernorm",
    ),
    "norms behind alone (OLMo 2)": (
        transformers.Olmo2Config(**COMMON),
        "post_attention_layernorm",
        "post_feedforward_layernorm",
    ),
    "sums inside (BLOOM)": (
        transformers.BloomConfig(vocab_size=300, n_layer=LAYERS, hidden_size=WIDTH, n_head=4),
        "self_attention.dense",
        "mlp.dense_4h_to_h",
    ),
    "sum inside the MLP (MPT)": (
        transformers.MptConfig(
            vocab_size=300, n_layers=LAYERS, d_model=WIDTH, n_heads=4, max_seq_len=64
        ),
        "attn",
        "ffn.down_proj",
    ),
    "added in place (Falcon)": (
        transformers.FalconConfig(**FALCON, parallel_attn=True),
        "self_attention",
        "mlp",
    ),
    "Falcon, sequential": (
        transformers.FalconConfig(**FALCON, parallel_attn=False, alibi=True),
        "self_attention",
        "mlp",
    ),
    "experts": (
        transformers.MixtralConfig(**COMMON, num_key_value_heads=2, num_local_experts=4),
        "self_attn",
        "mlp",
    ),
}


def build(config: Any) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()
    for weight in model.parameters():
        weight.copy_(
            weight + 0.2 * torch.randn_like(weight)
        )  # biases and norms are not plain zeros and ones
    return model


@pytest.mark.parametrize("form", CONFIGS)
def test_the_outputs_of_both_sublayers_sum_to_what_the_block_adds(form: str) -> None:
    config, attention, mlp = CONFIGS[form]
    model = build(config)
    assert sites.find_sublayers(model) == [sites.Sublayers(attention, mlp)] * LAYERS
    wanted: tuple[Literal["resid_post", "mlp_out", "attn_out"], ...] = (
        "resid_post",
        "mlp_out",
        "attn_out",
    )
    kept = {}
    for site in wanted:  # one at a time: the way jobs do it
        with (
            hooks.captured(sites.site_modules(model, [0, 1], site), stop=False) as outputs,
            torch.inference_mode(),
        ):
            model(torch.arange(9)[None] + 3, use_cache=False)
        kept[site] = list(outputs)
    before, after = kept["resid_post"]
    assert after.shape == (1, 9, WIDTH)
    torch.testing.assert_close(before + kept["attn_out"][1] + kept["mlp_out"][1], after)
    assert float(kept["attn_out"][1].norm()) > 0.01 < float(kept["mlp_out"][1].norm())


@pytest.mark.parametrize(
    "config",
    [
        transformers.GraniteConfig(**COMMON, residual_multiplier=0.5),  # scales what it adds
        transformers.MambaConfig(
            vocab_size=300, num_hidden_layers=LAYERS, hidden_size=WIDTH, state_size=4
        ),  # one sublayer
    ],
)
def test_a_block_without_two_such_modules_is_refused_for_sublayers_but_not_for_the_stream(
    config: Any,
) -> None:
    model = build(config)
    with pytest.raises(
        UserError,
        match=r"activations\.site: block 1 of \w+ .* has no two modules .*; use resid_post",
    ):
        sites.site_modules(model, [1], "attn_out")
    assert sites.site_modules(model, [1, 2], "resid_post") == models.blocks(model)[1:]
    sites.require_stream(model)


class _MlpFirst(nn.Module):
    """A block that runs its MLP before its attention."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.own = block
        self.attention_type = "full_attention"

    def forward(self, hidden: Tensor, **options: Any) -> Tensor:
        hidden = hidden + self.own.mlp(self.own.post_attention_layernorm(hidden))
        return hidden + self.own.self_attn(self.own.input_layernorm(hidden), **options)[0]  # type: ignore[no-any-return]


def test_attention_and_mlp_are_distinguished_by_their_dependence_on_earlier_tokens() -> None:
    model = build(transformers.LlamaConfig(**COMMON))
    for layer, block in enumerate(model.model.layers):
        model.model.layers[layer] = _MlpFirst(block)
    assert sites.find_sublayers(model, [1]) == [sites.Sublayers("own.self_attn", "own.mlp")]


def test_a_model_with_a_very_short_context_reads_as_many_tokens() -> None:
    config = transformers.GPT2Config(
        vocab_size=300, n_layer=LAYERS, n_embd=WIDTH, n_head=4, n_positions=6
    )
    assert sites.find_sublayers(build(config)) == [sites.Sublayers("attn", "mlp")] * LAYERS


def test_layers_that_the_model_lacks_are_refused() -> None:
    model = build(transformers.LlamaConfig(**COMMON))
    for layers in ([], [3], [1, 0], [-1]):
        with pytest.raises(
            UserError, match=r"activations\.layers: .* must be ascending within 0\.\.2"
        ):
            sites.site_modules(model, layers, "resid_post")


def test_blocks_that_do_not_return_one_vector_per_token_are_refused() -> None:
    model = build(transformers.LlamaConfig(**COMMON))
    model.model.layers[1].register_forward_hook(
        lambda _module, _arguments, output: output.flatten(0, 1)
    )
    model.model.layers[2].register_forward_pre_hook(
        lambda _module, arguments: (arguments[0][None], *arguments[1:])
    )
    with pytest.raises(UserError, match="block 1 does not map one vector of 32 per token"):
        sites.require_stream(model)

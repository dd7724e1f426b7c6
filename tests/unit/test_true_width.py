"""Models of today in their real shapes, with random weights and one or two blocks.

Widths, heads, vocabularies, windows and position encodings are those of the published
configurations. The architecture matrix (`test_architecture_matrix.py`) tests the same families in
small shapes, in more ways.
"""

import math
from pathlib import Path
from typing import Any

import architecture_matrix
import architectures
import numpy as np
import pytest
import torch
from architecture_matrix import EXACT, Draw, Subject
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from ghosttrack.activations import extraction, model_check
from ghosttrack.activations.extraction import Extraction, ModelIdentity, StoreFiles
from ghosttrack.activations.reader import ActivationStore
from ghosttrack.errors import UserError

# Family, and its names in the architecture matrix.
FAMILIES = {
    "Llama 3": ["llama+llama3"],
    "Qwen 3": ["qwen3", "qwen3+window"],
    "Gemma 2": ["gemma2"],
    "Gemma 3": ["gemma3_text"],
    "Mistral": ["mistral"],
    "Phi": ["phi"],
    "Phi-3": ["phi3", "phi3+longrope", "phi3+window"],
    "OPT": ["opt", "opt+post_norm"],
    "GPT-NeoX (Pythia)": ["gpt_neox", "gpt_neox+sequential"],
    "GPT-J": ["gptj"],
    "Falcon": ["falcon+alibi", "falcon+new_decoder", "falcon+parallel"],
    "BLOOM": ["bloom", "bloom+post_norm"],
    "OLMo 2": ["olmo2"],
    "Mixtral": ["mixtral"],
    "Qwen MoE": ["qwen2_moe", "qwen3_moe"],
}
# Models without one residual stream from block to block, or without such blocks.
WITHOUT_STREAM = [
    "gemma3n_text",
    "deepseek_v4",
    "reformer",
    "blenderbot",
    "hrm_text",
    "longcat_flash",
]

# ---- the shapes
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
SHAPES: dict[str, dict[str, Any]] = {
    "Llama-3.2-3B": {
        "model_type": "llama",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rope_parameters": LLAMA3_ROPE,
        "tie_word_embeddings": True,
    },
    "Qwen3-4B": {
        "model_type": "qwen3",
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
    },
    "Gemma-2-2B": {
        "model_type": "gemma2",
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "query_pre_attn_scalar": 256,
    },
    "Gemma-3-4B": {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262144,
        "max_position_embeddings": 131072,
        "sliding_window": 1024,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 256,
    },
    "Mistral-7B": {
        "model_type": "mistral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
    },
    "Phi-2": {
        "model_type": "phi",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 51200,
        "max_position_embeddings": 2048,
        "partial_rotary_factor": 0.4,
    },
    "Phi-3-mini": {
        "model_type": "phi3",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32064,
        "max_position_embeddings": 4096,
        "sliding_window": 2047,
        "pad_token_id": 32000,
    },
    "OPT-6.7B": {
        "model_type": "opt",
        "hidden_size": 4096,
        "word_embed_proj_dim": 4096,
        "ffn_dim": 16384,
        "num_attention_heads": 32,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "dropout": 0.0,
    },
    "Pythia-6.9B": {
        "model_type": "gpt_neox",
        "hidden_size": 4096,
        "intermediate_size": 16384,
        "num_attention_heads": 32,
        "vocab_size": 50432,
        "max_position_embeddings": 2048,
        "rotary_pct": 0.25,
    },
    "GPT-J-6B": {
        "model_type": "gptj",
        "n_embd": 4096,
        "n_head": 16,
        "rotary_dim": 64,
        "vocab_size": 50400,
        "n_positions": 2048,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "Falcon-7B": {
        "model_type": "falcon",
        "hidden_size": 4544,
        "num_attention_heads": 71,
        "vocab_size": 65024,
        "multi_query": True,
        "parallel_attn": True,
        "new_decoder_architecture": False,
        "bias": False,
        "alibi": False,
        "max_position_embeddings": 2048,
    },
    "BLOOM-3B": {"model_type": "bloom", "hidden_size": 2560, "n_head": 32, "vocab_size": 250880},
    "OLMo-2-7B": {
        "model_type": "olmo2",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 100352,
        "max_position_embeddings": 4096,
        "num_hidden_layers": 1,
    },
    # The experts of one block take 5.6 GB, so the vocabulary (32,000 tokens) is smaller.
    "Mixtral-8x7B": {
        "model_type": "mixtral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "vocab_size": 4096,
        "max_position_embeddings": 32768,
        "num_hidden_layers": 1,
    },
    "Qwen3-30B-A3B": {
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "moe_intermediate_size": 768,
        "intermediate_size": 6144,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "num_hidden_layers": 1,
    },
}
# Columns of the matrix.
READINGS = ("residual", "read alone", "read together")


def make(name: str) -> Any:
    """A random model in a real shape: two blocks unless stated, float32, CPU."""
    shape = {"num_hidden_layers": 2, "use_cache": True, **SHAPES[name]}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = AutoConfig.for_model(**{**ends, **shape})
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        redraw(model)
    return model.requires_grad_(False).eval()


@torch.no_grad()
def redraw(model: Any) -> None:
    """Random weights as in `architectures`, in place: attention is sharp, and so is the output."""
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        for key, weight in module.named_parameters(recurse=False):
            if weight in seen:
                continue
            seen.add(weight)
            if weight.numel() == max(weight.shape):
                weight.add_(torch.randn_like(weight) * (0.1 if "bias" in key else 0.2))
            elif isinstance(module, nn.Embedding):
                # A tied embedding is the output layer, too.
                weight.normal_().mul_(3.0 / math.sqrt(weight.shape[1]))
            else:
                inputs = weight.shape[1] if weight.ndim == 2 else sum(weight.shape[-2:]) / 2
                weight.normal_().mul_(1.5 / math.sqrt(inputs))


def stored(subject: Subject, tokens: np.ndarray[Any, Any], folder: Path) -> list[torch.Tensor]:
    """The stored activations of every layer, (rows, d_model)."""
    names = [folder / f"layer_{layer:02d}" for layer in subject.layers]
    targets = [StoreFiles(name.with_suffix(".zarr"), name.with_suffix(".json")) for name in names]
    extraction.extract_contexts(
        subject.model,
        ModelIdentity("", "weights"),
        tokens,
        subject.layers,
        targets,
        Extraction("resid_post", batch=2 if subject.limits.batched else 1),
    )
    return [
        torch.from_numpy(ActivationStore.open([one.store], [one.manifest]).read()).float()
        for one in targets
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_a_model_in_its_real_shape_is_read_exactly(name: str, tmp_path: Path) -> None:
    model = make(name)
    subject = Subject(model)  # raises if the check refuses the model
    assert subject.limits.batched
    tokens = np.array([[0, *Draw(8).ids(31)] for _ in range(2)], dtype=np.int32)
    plain = [subject.plain.read(context).blocks for context in tokens.tolist()]
    for layer, found in zip(subject.layers, stored(subject, tokens, tmp_path), strict=True):
        true = torch.cat([text[layer] for text in plain])
        # Equal up to the rounding of float16, relative to the norm of a row.
        assert bool(((found - true).norm(dim=1) <= 2**-10 * true.norm(dim=1)).all())
    with torch.inference_mode():
        cells = {column: architecture_matrix.CELLS[column](subject) for column in READINGS}
    assert cells["residual"] == cells["read alone"] == EXACT
    # BLOOM's positions are places in the sequence, so its texts are read alone.
    assert cells["read together"] == ("exact, alone" if "BLOOM" in name else EXACT)


@pytest.mark.slow
def test_a_wrong_mask_in_a_real_shape_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: a reader whose texts see each other differs from the plain model."""
    from ghosttrack.activations.packed_texts import PackedReader

    subject = Subject(make("Phi-3-mini"))

    monkeypatch.setattr(PackedReader, "_mask", lambda _self, _pack: None)
    with torch.inference_mode(), pytest.raises(AssertionError, match="differs by"):
        architecture_matrix.CELLS["read together"](subject)


# ---- the families of the shapes, in the matrix of small ones
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_in_the_architecture_matrix(family: str) -> None:
    assert set(FAMILIES[family]) <= set(architectures.CONFIGS)


def test_every_real_shape_is_of_a_family_of_the_matrix() -> None:
    families = {name.partition("+")[0] for names in FAMILIES.values() for name in names}
    assert {shape["model_type"] for shape in SHAPES.values()} <= families
    assert len(SHAPES) == len(FAMILIES)


@pytest.mark.parametrize("name", WITHOUT_STREAM)
def test_a_model_without_a_residual_stream_of_blocks_is_refused_in_one_line(name: str) -> None:
    model = architectures.make(name)
    with pytest.raises(UserError) as refusal:
        model_check.check(model, np.array(Draw(0).ids(900)), 0, "resid_post")
    text = str(refusal.value)
    assert "\n" not in text
    assert type(model).__name__ in text
    assert any(
        reason in text
        for reason in ("no residual stream", "has no ModuleList", "is not the output of block")
    )

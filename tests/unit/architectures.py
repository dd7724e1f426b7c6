"""Tiny random causal language models of every transformers architecture that a config can build.

The models test code that must work for any architecture. Their random weights are scaled so that a
wrong attention mask, position or normalisation visibly changes the log-probabilities. The default
initialisation of transformers (standard deviation .02) makes attention nearly uniform, and hides
such errors.

    model = architectures.make("mistral")
    log_probs = model(ids).logits.log_softmax(-1)  # (batch, position, 128)

A name is the `model_type` of a configuration, or `model_type+variant` for further forms of a type.
Each model has a vocabulary of 128 tokens, d_model 32, 2 to 4 layers that include every layer type,
64 positions, and windows of 8 tokens. Tests should use texts of more than 16 tokens, where scaled
rotary embeddings change, and token ids from 3 to 127, because ids 0 to 2 are special tokens.
"""

import contextlib
import copy
import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

_Values = dict[str, Any]

_FULL, _SLIDING, _LINEAR, _CONV = "full_attention", "sliding_attention", "linear_attention", "conv"
_ALTERNATING = [_SLIDING, _FULL, _SLIDING, _FULL]
_FIRST_DENSE = ["dense", "sparse", "sparse", "sparse"]
_DEFAULT_ROPE: _Values = {"rope_type": "default", "rope_theta": 10000.0}
_LLAMA3_ROPE: _Values = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
_YARN_ROPE: _Values = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
_DYNAMIC_ROPE: _Values = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}

# The shapes that most architectures share.
_IDS: _Values = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_LATER_IDS: _Values = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
_LLAMA: _Values = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
} | _IDS
_ALL_HEADS: _Values = _LLAMA | {"num_key_value_heads": 4}
_NO_HEAD_DIM: _Values = {key: value for key, value in _ALL_HEADS.items() if key != "head_dim"}
_NO_DEPTH: _Values = {key: value for key, value in _LLAMA.items() if key != "num_hidden_layers"}
_GPT: _Values = {
    "vocab_size": 128,
    "n_positions": 64,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
} | _IDS
_BLOOM: _Values = {"vocab_size": 128, "hidden_size": 32, "n_layer": 3, "n_head": 4} | _IDS
_FALCON: _Values = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "ffn_hidden_size": 48,
    "max_position_embeddings": 64,
} | _IDS
_OPT: _Values = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "ffn_dim": 48,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "dropout": 0.0,
} | _LATER_IDS
_BERT: _Values = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "is_decoder": True,
} | _LATER_IDS
_ROBERTA: _Values = _BERT | {"max_position_embeddings": 66}  # positions start at 2
_BART: _Values = {
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "d_model": 32,
    "decoder_layers": 3,
    "decoder_ffn_dim": 48,
    "decoder_attention_heads": 4,
    "encoder_layers": 3,
    "encoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
} | _LATER_IDS

# The parts that architectures combine.
_WINDOW: _Values = {"sliding_window": 8}
_MIXTURE: _Values = {"num_local_experts": 4, "num_experts_per_tok": 2}
_EXPERTS: _Values = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
}
_SCALES: _Values = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.3,
    "logits_scaling": 2.0,
}
_MLA_DIRECT: _Values = {
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "kv_lora_rank": 16,
}
_MLA: _Values = _MLA_DIRECT | {"q_lora_rank": 16}
_DEEPSEEK: _Values = (
    _ALL_HEADS
    | _MLA
    | {
        "moe_intermediate_size": 24,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    }
)
# 16 heads: with fewer, the index scores of many keys are exactly 0, and ties hide which keys are
# selected.
_INDEXED: _Values = {"index_topk": 8, "index_head_dim": 8, "index_n_heads": 16}
_DELTA: _Values = {
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": [_LINEAR, _LINEAR, _LINEAR, _FULL],
}
_MAMBA: _Values = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "state_size": 8,
} | _IDS
_STATE_SPACE: _Values = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}

_VALUES: dict[str, _Values] = {
    "afmoe": _LLAMA
    | _WINDOW
    | {
        "moe_intermediate_size": 24,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_shared_experts": 1,
        "mup_enabled": True,
    },
    "apertus": _LLAMA | {"rope_parameters": _LLAMA3_ROPE},
    "arcee": _LLAMA,
    "aria_text": _LLAMA | {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
    "axk1": _DEEPSEEK | {"mlp_layer_types": _FIRST_DENSE},
    "axk2": _DEEPSEEK | _INDEXED | {"mlp_layer_types": _FIRST_DENSE, "gated_norm_rank": 4},
    "bailing_hybrid": _ALL_HEADS
    | _MLA_DIRECT
    | {
        "moe_intermediate_size": 24,
        "num_experts": 4,
        "num_experts_per_token": 2,
        "num_expert_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "layer_types": [_LINEAR, _FULL, _LINEAR, _FULL],
        "layer_group_size": 2,
        "model_max_length": 64,
    },
    "bamba": _LLAMA | _STATE_SPACE | {"attn_layer_indices": [1, 3]},
    "bart": _BART,
    "beam": _LLAMA
    | _WINDOW
    | {
        "moe_intermediate_size": 24,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "mlp_layer_types": _FIRST_DENSE,
        "layer_types": _ALTERNATING,
    },
    "bert": _BERT,
    "bert-generation": _BERT,
    "big_bird": _BERT | {"attention_type": "original_full"},
    "bigbird_pegasus": _BART | {"attention_type": "original_full"},
    "biogpt": _BERT,
    "bitnet": _LLAMA,
    "blenderbot": _BART | {"encoder_layers": 2},
    "blenderbot-small": _BART,
    "bloom": _BLOOM,
    "bloom+post_norm": _BLOOM | {"apply_residual_connection_post_layernorm": True},
    "camembert": _ROBERTA,
    "codegen": _GPT | {"rotary_dim": 4, "n_ctx": 64},
    "cohere": _LLAMA | {"logit_scale": 1.0, "use_qk_norm": True},
    "cohere2": _LLAMA | _WINDOW | {"logit_scale": 1.0},
    "cohere2_moe": _LLAMA
    | _WINDOW
    | {"logit_scale": 1.0, "num_experts": 4, "num_experts_per_tok": 2},
    "cohere_compass_text": _LLAMA
    | _WINDOW
    | {
        "layer_types": _ALTERNATING,
        "rope_parameters": {_SLIDING: _DEFAULT_ROPE, _FULL: _DEFAULT_ROPE},
    },
    "ctrl": _GPT | {"dff": 48},
    "cwm": _LLAMA | _WINDOW | {"rope_parameters": _LLAMA3_ROPE},
    "data2vec-text": _ROBERTA,
    "dbrx": {
        "vocab_size": 128,
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 3,
        "max_seq_len": 64,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {
            "ffn_hidden_size": 48,
            "moe_num_experts": 4,
            "moe_top_k": 2,
            "hidden_size": 32,
        },
    }
    | _IDS,
    "deepseek_v2": _DEEPSEEK | {"n_group": 1},
    "deepseek_v3": _DEEPSEEK,
    "deepseek_v32": _DEEPSEEK | _INDEXED,
    "deepseek_v4": _LLAMA
    | {"num_key_value_heads": 1}
    | _WINDOW
    | {
        "moe_intermediate_size": 24,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 4,
        "index_topk": 2,
        "index_head_dim": 8,
        "index_n_heads": 4,
        "hc_mult": 2,
        "o_groups": 2,
        "o_lora_rank": 8,
        "layer_types": [
            "heavily_compressed_attention",
            "compressed_sparse_attention",
            _SLIDING,
            "compressed_sparse_attention",
        ],
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
        "mlp_layer_types": ["hash_moe", "moe", "moe", "moe"],
    },
    "diffllama": _LLAMA,
    "doge": _LLAMA | {"keep_window_size": 8},
    "doge+moe": _LLAMA | {"is_moe": True, "num_experts": 16, "num_experts_per_tok": 2},
    "dots1": _LLAMA
    | _WINDOW
    | {
        "moe_intermediate_size": 24,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "layer_types": _ALTERNATING,
    },
    "dots3_note_text": _DEEPSEEK
    | _INDEXED
    | _WINDOW
    | {
        "mlp_layer_types": _FIRST_DENSE,
        "layer_types": ["indexed_attention", _SLIDING] * 2,
        "shared_experts_intermediate_size": 24,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_head_dim": 16,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_qk_rope_head_dim": 8,
        "swa_v_head_dim": 8,
    },
    "electra": _BERT | {"embedding_size": 16},
    "ernie": _BERT,
    "ernie4_5": _LLAMA,
    "ernie4_5_moe": _LLAMA
    | {"moe_intermediate_size": 24, "moe_k": 2, "moe_num_experts": 4, "moe_num_shared_experts": 1},
    "exaone4": _LLAMA | _WINDOW,
    "exaone_moe": _LLAMA
    | _WINDOW
    | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "falcon+alibi": _FALCON
    | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    "falcon+new_decoder": _FALCON
    | {"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon+parallel": _FALCON | {"alibi": False, "multi_query": True, "parallel_attn": True},
    "falcon_h1": _LLAMA
    | _STATE_SPACE
    | {
        "mamba_d_ssm": 64,
        "embedding_multiplier": 2.0,
        "lm_head_multiplier": 0.7,
        "attention_out_multiplier": 0.8,
        "ssm_out_multiplier": 0.6,
        "key_multiplier": 1.2,
        "mlp_multipliers": [0.8, 1.2],
        "ssm_multipliers": [0.9, 1.1, 0.8, 1.2, 1.0],
    },
    "falcon_mamba": _MAMBA | {"time_step_rank": 4},
    "flex_olmo": _ALL_HEADS | {"num_experts": 4, "num_experts_per_tok": 2},
    "gemma": _LLAMA,
    "gemma2": _LLAMA | _WINDOW | {"query_pre_attn_scalar": 8},
    "gemma3_text": _LLAMA
    | _WINDOW
    | {"query_pre_attn_scalar": 8, "layer_types": [_SLIDING, _SLIDING, _SLIDING, _FULL]},
    "gemma3n_text": _LLAMA
    | _WINDOW
    | {
        "layer_types": [_SLIDING, _FULL, _SLIDING, _FULL],
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 128,
        "laurel_rank": 8,
        "num_kv_shared_layers": 2,
        "altup_num_inputs": 2,
        "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0],
    },
    "gemma4_text": _LLAMA
    | _WINDOW
    | {
        "layer_types": _ALTERNATING,
        "global_head_dim": 16,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 128,
    },
    "gemma4_text+moe": _LLAMA
    | _WINDOW
    | {
        "layer_types": _ALTERNATING,
        "global_head_dim": 16,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 128,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 24,
        "attention_k_eq_v": True,
    },
    "gemma4_text+shared_kv": _LLAMA
    | _WINDOW
    | {
        "layer_types": _ALTERNATING,
        "global_head_dim": 16,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 128,
        "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True,
    },
    "gemma4_unified_text": _LLAMA | _WINDOW | {"layer_types": _ALTERNATING, "global_head_dim": 16},
    "glm": _LLAMA,
    "glm4": _LLAMA,
    "glm4_moe": _LLAMA
    | {
        "moe_intermediate_size": 24,
        "num_experts_per_tok": 2,
        "n_routed_experts": 4,
        "use_qk_norm": True,
    },
    "glm4_moe_lite": _DEEPSEEK,
    "glm_moe_dsa": _DEEPSEEK | _INDEXED | {"mlp_layer_types": _FIRST_DENSE},
    "gpt2": _GPT,
    "gpt2+scaled_by_layer": _GPT
    | {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    "gpt_bigcode": _GPT,
    "gpt_bigcode+multi_head": _GPT | {"multi_query": False},
    "gpt_neo": {
        "vocab_size": 128,
        "max_position_embeddings": 64,
        "hidden_size": 32,
        "num_layers": 4,
        "attention_types": [[["global", "local"], 2]],
        "num_heads": 4,
        "window_size": 8,
    }
    | _IDS,
    "gpt_neox": _ALL_HEADS,
    "gpt_neox+sequential": _ALL_HEADS | {"use_parallel_residual": False},
    "gpt_neox_japanese": _ALL_HEADS | {"intermediate_multiple_size": 2, "attention_dropout": 0.0},
    "gpt_oss": _LLAMA | _MIXTURE | _WINDOW | {"rope_parameters": _YARN_ROPE | {"truncate": False}},
    "gpt-sw3": _GPT,
    "gptj": _GPT | {"rotary_dim": 4},
    "granite": _LLAMA | _SCALES,
    "granite_swa": _LLAMA | _SCALES | _WINDOW,
    "granitemoe": _LLAMA | _SCALES | _MIXTURE,
    "granitemoe_swa": _LLAMA | _SCALES | _MIXTURE | _WINDOW,
    "granitemoehybrid": _LLAMA
    | _SCALES
    | _MIXTURE
    | _STATE_SPACE
    | {
        "shared_intermediate_size": 24,
        "layer_types": [_LINEAR, _FULL, _LINEAR, _FULL],
        "position_embedding_type": "rope",
    },
    "granitemoeshared": _LLAMA | _SCALES | _MIXTURE | {"shared_intermediate_size": 24},
    "helium": _LLAMA,
    "hrm_text": _LLAMA | {"num_layers_per_stack": 2},
    "hunyuan_v1_dense": _LLAMA,
    "hunyuan_v1_moe": _LLAMA | {"num_experts": 4, "moe_topk": 2},
    "hy_v3": _LLAMA
    | {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "mlp_layer_types": _FIRST_DENSE,
    },
    "hy_v4": _DEEPSEEK | _INDEXED | {"mlp_layer_types": _FIRST_DENSE},
    "hyperclovax": _LLAMA | _SCALES,
    "inkling2_text": _LLAMA
    | {
        "sliding_window_size": 8,
        "moe_intermediate_size": 24,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 8,
        "d_rel": 4,
        "rel_extent": 16,
        "layer_types": ["hybrid_sliding", "hybrid"] * 2,
    },
    "inkling_text": _LLAMA
    | {
        "logits_mup_width_multiplier": 1.0,
        "sliding_window_size": 8,
        "moe_intermediate_size": 24,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 8,
        "d_rel": 4,
        "rel_extent": 16,
        "layer_types": ["hybrid_sliding", "hybrid"] * 2,
        "mlp_layer_types": _FIRST_DENSE,
    },
    "jais2": _LLAMA,
    "jamba": _LLAMA
    | {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "use_mamba_kernels": False,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "jetmoe": _LLAMA
    | {"num_attention_heads": 4}
    | {"kv_channels": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "kimi_linear": _ALL_HEADS
    | _MLA_DIRECT
    | {
        "moe_intermediate_size": 24,
        "num_experts": 4,
        "num_experts_per_token": 2,
        "layer_types": [_LINEAR, _FULL, _LINEAR, _FULL],
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "model_max_length": 64,
        "mlp_layer_types": _FIRST_DENSE,
    },
    "kolibri1": _LLAMA
    | _WINDOW
    | _MIXTURE
    | {
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24,
        "layer_types": _ALTERNATING,
    },
    "laguna": _LLAMA
    | _WINDOW
    | {
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": _ALTERNATING,
        "num_attention_heads_per_layer": [4] * 4,
        "mlp_layer_types": _FIRST_DENSE,
    },
    "lfm2": _LLAMA
    | {"layer_types": [_CONV, _FULL, _CONV, _FULL], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": _LLAMA
    | {
        "layer_types": [_CONV, _FULL, _CONV, _FULL],
        "num_dense_layers": 1,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
    },
    "lfm3": _LLAMA | _WINDOW | {"layer_types": [_CONV, _FULL, _CONV, _SLIDING]},
    "llama": _LLAMA,
    "llama+dynamic_ntk": _LLAMA | {"rope_parameters": _DYNAMIC_ROPE},
    "llama+dynamic_ntk_16": _LLAMA
    | {"max_position_embeddings": 16}
    | {"rope_parameters": _DYNAMIC_ROPE},
    "llama+linear": _LLAMA
    | {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "llama+llama3": _LLAMA | {"rope_parameters": _LLAMA3_ROPE},
    "llama+yarn": _LLAMA | {"rope_parameters": _YARN_ROPE},
    "llama4_text": _LLAMA
    | (_MIXTURE | {"num_experts_per_tok": 1})
    | {
        "intermediate_size_mlp": 48,
        "attention_chunk_size": 8,
        "interleave_moe_layer_step": 2,
        "floor_scale": 8,
    },
    "longcat_flash": {
        "vocab_size": 128,
        "hidden_size": 32,
        "num_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "ffn_hidden_size": 48,
        "expert_ffn_hidden_size": 24,
        "n_routed_experts": 4,
        "zero_expert_num": 2,
        "moe_topk": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
    }
    | _MLA
    | _IDS,
    "mamba": _MAMBA | {"time_step_rank": 4},
    "mamba2": _MAMBA | {"num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8},
    "marian": _BART | {"decoder_vocab_size": 128},
    "mbart": _BART,
    "megatron-bert": _BERT,
    "mellum": _LLAMA
    | _WINDOW
    | _MIXTURE
    | {"moe_intermediate_size": 24, "layer_types": _ALTERNATING},
    "mimo_v2_flash": _LLAMA
    | _WINDOW
    | {
        "v_head_dim": 8,
        "moe_intermediate_size": 24,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": _ALTERNATING,
        "mlp_layer_types": _FIRST_DENSE,
    },
    "minicpm3": _ALL_HEADS | _MLA | {"scale_emb": 3, "scale_depth": 1.4, "dim_model_base": 16},
    "minimax": _LLAMA
    | _MIXTURE
    | {"block_size": 8, "layer_types": [_FULL, _LINEAR, _FULL, _LINEAR]},
    "minimax_m2": _LLAMA | _MIXTURE,
    "minimax_m3_vl_text": _LLAMA
    | _MIXTURE
    | {
        "dense_intermediate_size": 48,
        "shared_intermediate_size": 24,
        "rotary_dim": 8,
        "mlp_layer_types": _FIRST_DENSE,
        "layer_types": [_FULL, "minimax_m3_sparse", _FULL, "minimax_m3_sparse"],
        "index_n_heads": 2,
        "index_head_dim": 8,
        "index_block_size": 4,
        "index_topk_blocks": 2,
    },
    "ministral": _LLAMA | _WINDOW | {"layer_types": _ALTERNATING},
    "ministral3": _LLAMA
    | {
        "rope_parameters": _YARN_ROPE
        | {"llama_4_scaling_beta": 0.1, "mscale": 1.0, "mscale_all_dim": 1.0}
    },
    "mistral": _LLAMA | _WINDOW,
    "mixtral": _LLAMA | _MIXTURE | _WINDOW,
    "modernbert-decoder": _LLAMA
    | {
        "local_attention": 16,
        "layer_types": [_FULL, _SLIDING, _SLIDING, _FULL],
        "cls_token_id": 0,
        "sep_token_id": 0,
    },
    "mpt": {"vocab_size": 128, "d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 64}
    | _IDS,
    "mvp": _BART,
    "nanochat": _ALL_HEADS,
    "nemotron": _LLAMA,
    "nemotron_h": _NO_DEPTH
    | {
        "layers_block_type": [_LINEAR, "moe", _FULL, "mlp"],
        "ssm_state_size": 8,
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 2,
        "chunk_size": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "moe_shared_expert_intermediate_size": 24,
    },
    "olmo": _LLAMA | {"clip_qkv": 8.0},
    "olmo2": _LLAMA,
    "olmo3": _LLAMA | _WINDOW,
    "olmo_hybrid": _LLAMA | (_DELTA | {"linear_num_key_heads": 4}),
    "olmoe": _ALL_HEADS | {"num_experts": 4, "num_experts_per_tok": 2},
    "openai-gpt": _GPT,
    "opt": _OPT | {"word_embed_proj_dim": 32},
    "opt+post_norm": _OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 16},
    "pegasus": _BART,
    "persimmon": _ALL_HEADS,
    "phi": _LLAMA | {"qk_layernorm": True},
    "phi3": _LLAMA,
    "phi3+longrope": _LLAMA
    | {
        "original_max_position_embeddings": 16,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [1.0, 2.0, 3.0, 4.0],
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "phi3+window": _LLAMA | _WINDOW,
    "phimoe": _LLAMA | _MIXTURE | {"router_jitter_noise": 0.0},
    "plbart": _BART,
    "prophetnet": {
        "vocab_size": 128,
        "hidden_size": 32,
        "decoder_ffn_dim": 48,
        "encoder_ffn_dim": 48,
        "num_decoder_layers": 3,
        "num_encoder_layers": 3,
        "num_decoder_attention_heads": 4,
        "num_encoder_attention_heads": 4,
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "activation_dropout": 0.0,
        "max_position_embeddings": 64,
    }
    | _LATER_IDS,
    "qwen2": _LLAMA | _WINDOW | {"use_sliding_window": True, "max_window_layers": 2},
    "qwen2+full": _LLAMA,
    "qwen2_moe": _LLAMA
    | _EXPERTS
    | {"decoder_sparse_step": 2}
    | _WINDOW
    | {"use_sliding_window": True, "max_window_layers": 2},
    "qwen3": _LLAMA,
    "qwen3+window": _LLAMA | _WINDOW | {"use_sliding_window": True, "max_window_layers": 2},
    "qwen3_5_moe_text": _LLAMA | _DELTA | _EXPERTS,
    "qwen3_5_text": _LLAMA | _DELTA,
    "qwen3_moe": _LLAMA | {"moe_intermediate_size": 24} | _MIXTURE,
    "qwen3_next": _LLAMA | _DELTA | _EXPERTS,
    "qwen4_exp_text": _LLAMA
    | _EXPERTS
    | (_DELTA | {"layer_types": [_LINEAR, "indexed_attention"] * 2})
    | {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "hc_lowrank": 8,
        "hc_count": 2,
    },
    "recurrent_gemma": _LLAMA
    | {"block_types": ["recurrent", "attention"], "lru_width": 32, "attention_window_size": 8},
    "reformer": {
        "vocab_size": 128,
        "hidden_size": 32,
        "feed_forward_size": 48,
        "attention_head_size": 8,
        "num_attention_heads": 4,
        "attn_layers": ["local"] * 3,
        "is_decoder": True,
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
        "max_position_embeddings": 64,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_buckets": 8,
        "hash_seed": 0,
        "hidden_dropout_prob": 0.0,
        "local_attention_probs_dropout_prob": 0.0,
        "pad_token_id": 0,
        "eos_token_id": 2,
    },
    "reformer+lsh": {
        "vocab_size": 128,
        "hidden_size": 32,
        "feed_forward_size": 48,
        "attention_head_size": 8,
        "num_attention_heads": 4,
        "attn_layers": ["local", "lsh", "local"],
        "is_decoder": True,
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
        "max_position_embeddings": 64,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_buckets": 8,
        "hash_seed": 0,
        "hidden_dropout_prob": 0.0,
        "local_attention_probs_dropout_prob": 0.0,
        "pad_token_id": 0,
        "eos_token_id": 2,
    },
    "rembert": _BERT | {"input_embedding_size": 16, "output_embedding_size": 32},
    "roberta": _ROBERTA,
    "roberta-prelayernorm": _ROBERTA,
    "roc_bert": _BERT
    | {
        "pronunciation_embed_dim": 16,
        "pronunciation_vocab_size": 16,
        "shape_embed_dim": 16,
        "shape_vocab_size": 16,
    },
    "roformer": _BERT | {"embedding_size": 32},
    "rwkv": {
        "vocab_size": 128,
        "context_length": 64,
        "hidden_size": 32,
        "attention_hidden_size": 32,
        "num_hidden_layers": 3,
        "intermediate_size": 48,
    }
    | _IDS,
    "seed_oss": _LLAMA | {"attention_dropout": 0.0, "residual_dropout": 0.0},
    "smollm3": _LLAMA | {"no_rope_layer_interval": 2},
    "solar_open": _LLAMA
    | {"moe_intermediate_size": 24, "n_routed_experts": 4, "num_experts_per_tok": 2},
    "stablelm": _LLAMA | {"use_qkv_bias": True},
    "stablelm+parallel": _LLAMA | {"use_parallel_residual": True, "qk_layernorm": True},
    "starcoder2": _LLAMA | _WINDOW,
    "trocr": _BART,
    "vaultgemma": _LLAMA | _WINDOW | {"query_pre_attn_scalar": 8},
    "whisper": _BART | {"max_target_positions": 64, "max_source_positions": 64},
    "xglm": {
        "vocab_size": 128,
        "max_position_embeddings": 64,
        "d_model": 32,
        "ffn_dim": 48,
        "num_layers": 3,
        "attention_heads": 4,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    }
    | _LATER_IDS,
    "xlm": {
        "vocab_size": 128,
        "emb_dim": 32,
        "n_layers": 3,
        "n_heads": 4,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "causal": True,
        "max_position_embeddings": 64,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    },
    "xlm-roberta": _ROBERTA,
    "xlm-roberta-xl": _ROBERTA,
    "xlnet": {
        "vocab_size": 128,
        "d_model": 32,
        "n_layer": 3,
        "n_head": 4,
        "d_inner": 48,
        "attn_type": "uni",
        "dropout": 0.0,
        "mem_len": None,
    }
    | _IDS,
    "xlstm": {
        "vocab_size": 128,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_blocks": 3,
        "num_heads": 4,
        "chunk_size": 16,
        "embedding_dim": 32,
    }
    | _IDS,
    "xmod": _ROBERTA | {"default_language": "en_XX"},
    "youtu": _ALL_HEADS | _MLA | {"pad_token_id": None},
    "youtu+padding": _ALL_HEADS | _MLA,
    "zamba": _NO_HEAD_DIM
    | {
        "layers_block_type": [_LINEAR, _LINEAR, "hybrid", "hybrid"],
        "use_mamba_kernels": False,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "n_mamba_heads": 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zamba2": _NO_HEAD_DIM
    | {
        "layers_block_type": [_LINEAR, "hybrid", _LINEAR, "hybrid"],
        "mamba_d_state": 8,
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
        "chunk_size": 8,
        "use_mamba_kernels": False,
        "num_mem_blocks": 2,
        "use_shared_attention_adapter": True,
        "adapter_rank": 4,
        "use_mem_rope": True,
    },
    "zaya": _LLAMA
    | _WINDOW
    | {
        "moe_intermediate_size": 24,
        "num_experts": 4,
        "router_hidden_size": 8,
        "layer_types": ["hybrid", "hybrid_sliding"] * 2,
    },
}


# Configuration keys that limit which earlier tokens a layer sees: windows, chunks, and the number
# of selected keys.
WINDOW_KEYS = (
    "sliding_window",
    "sliding_window_size",
    "window_size",
    "attention_window_size",
    "local_attention",
    "attention_chunk_size",
    "index_topk",
    "keep_window_size",
    "index_topk_blocks",
    "indexer_budget",
)

# Architectures in which a later token changes log-probabilities at earlier positions, with the
# reason.
NOT_CAUSAL = {
    "doge+moe": "the router reads its scores across tokens and texts",
    "prophetnet": "its n-gram streams mix positions",
    "reformer+lsh": "the hash buckets of a text are split into chunks, and later tokens move the boundaries",
}

# Architectures in which the same first tokens get other log-probabilities in a longer text.
LENGTH_DEPENDENT = {
    "doge": "repeated tokens tie in the choice of kept keys, and the length of the text breaks the tie",
    "llama+dynamic_ntk_16": "texts of more than 16 tokens use other rotary frequencies",
    "phi3+longrope": "texts of more than 16 tokens use other rotary frequencies",
}

# Architectures with other log-probabilities after save_pretrained and from_pretrained.
UNSAVEABLE = {
    "youtu+padding": "loading sets the embedding of the padding token to 0, which is also its output weight"
}

# Recurrence parameters stay near their initial values: others forget or diverge within a few
# tokens.
_RECURRENT = re.compile(r"A_log|dt_|conv|time_|recurrent_")


def _config(name: str, **changes: Any) -> PretrainedConfig:
    model_type = name.partition("+")[0]
    return AutoConfig.for_model(model_type, **copy.deepcopy(_VALUES[name]) | changes)


CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    name: functools.partial(_config, name) for name in _VALUES
}


def window_keys(name: str) -> list[str]:
    """The keys of WINDOW_KEYS that the configuration of an architecture sets."""
    return [key for key in WINDOW_KEYS if key in _VALUES[name]]


def make(name: str, seed: int = 0, **changes: Any) -> Any:
    """A random model of one architecture: evaluation mode, no gradients, float32, CPU.

    Args:
        name: a key of CONFIGS.
        seed: of the weights. The global random state does not change.
        changes: configuration values that replace those of CONFIGS.
    """
    torch.set_num_threads(1)  # as in small_models
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(_config(name, **changes), dtype=torch.float32)
        _redraw(model)
    return model.requires_grad_(False).eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


@torch.no_grad()
def _redraw(model: Any) -> None:
    """Give every parameter a random value; shared parameters get one value.

    Matrices keep the scale of their input times 1.5, so that attention scores vary by about 2. The
    output layer scales by 3, so that log-probabilities vary by several nats. Vectors (norms,
    biases) move away from their initial values, for norms that multiply by w and those that
    multiply by 1 + w.
    """
    seen: set[nn.Parameter] = set()
    for path, module in model.named_modules():
        for key, weight in module.named_parameters(recurse=False):
            if weight in seen:
                continue
            seen.add(weight)
            noise = torch.randn_like(weight)
            vector = weight.numel() == max(weight.shape, default=1)
            if vector or _RECURRENT.search(f"{path.rpartition('.')[2]}.{key}"):
                weight.add_(noise * (0.1 if "bias" in key else 0.2))
            elif isinstance(module, nn.Embedding):
                weight.copy_(noise * 0.5)
            else:
                gain = 3.0 if module is model.get_output_embeddings() else 1.5
                weight.copy_(noise * gain / math.sqrt(_inputs(module, weight)))


def _inputs(module: nn.Module, weight: nn.Parameter) -> float:
    """Number of inputs of a matrix; the mean of both sides if the layout is unknown."""
    if isinstance(module, nn.Linear):
        return weight.shape[1]
    if isinstance(module, Conv1D):
        return weight.shape[0]
    return (weight.shape[-1] + weight.shape[-2]) / 2

"""Fields of a pretrained SAE's cfg.json: fields that are read, ignored or refused.

The names are those of SAELens (all versions up to 6.54) and of sparsify (up to 1.3, and its
predecessor `sae`). An unknown field may change what an SAE computes, so it is an error.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.settings.names import SAELENS as SAELENS_NAME


class KnownFields(NamedTuple):
    """The known fields of one format."""

    used: frozenset[str]  # read or checked by `inputs.pretrained` or `sae.conversion`
    ignored: frozenset[str]  # without effect on latents and reconstructions
    off: Mapping[str, str]  # must be null, false, 0 or empty; with the feature that they enable


def _names(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


# Source of the tokens and execution of the model during training.
_DATA = _names(
    "context_size dataset_path dataset_trust_remote_code streaming is_dataset_tokenized "
    "prepend_bos seqpos_slice",
    "exclude_special_tokens use_chat_formatting disable_concat_sequences sequence_separator_token "
    "exclude_tokens",
    "use_cached_activations cached_activations_path n_batches_in_buffer store_batch_size_prompts "
    "store_batch_size",
    "act_store_device llm_device prefetch_llm_batches activations_mixing_fraction "
    "tokens_per_buffer model_kwargs",
    "n_batches_for_norm_estimate model_class_name hook_eval hook_point_eval",
)
# Losses, optimiser and initialisation.
_TRAINING = _names(
    "training_tokens total_training_tokens finetuning_tokens finetuning_method "
    "train_batch_size_tokens train_batch_size",
    "adam_beta1 adam_beta2 lr lr_scheduler_name lr_warm_up_steps lr_end lr_decay_steps "
    "n_restart_cycles",
    "l1_coefficient l1_warm_up_steps lp_norm l0_coefficient l0_warm_up_steps target_l0 "
    "mse_loss_normalization",
    "scale_sparsity_penalty_by_decoder_norm normalize_sae_decoder noise_scale use_ghost_grads",
    "b_dec_init_method decoder_orthogonal_init decoder_heuristic_init decoder_heuristic_init_norm "
    "decoder_init_norm",
    "init_encoder_as_decoder_transpose expansion_factor from_pretrained_path seed",
    "jumprelu_init_threshold jumprelu_bandwidth jumprelu_sparsity_loss_mode jumprelu_tanh_scale "
    "jumprelu_ste_to_input",
    "pre_act_loss_coefficient topk_threshold_lr use_sparse_activations aux_loss_coefficient "
    "matryoshka_widths",
    "use_matryoshka_aux_loss feature_sampling_window feature_sampling_method dead_feature_window "
    "dead_feature_threshold",
    "dead_feature_estimation_method resample_batches feature_reinit_scale",
)
# Precision and device of the training, compilation, logging, versions and names.
_BOOKKEEPING = _names(
    "dtype device autocast autocast_lm compile_llm llm_compilation_mode compile_sae "
    "sae_compilation_mode",
    "log_to_wandb log_activations_store_to_wandb log_optimizer_state_to_wandb log_weights_to_wandb "
    "wandb_project",
    "wandb_id wandb_entity wandb_log_frequency run_name eval_every_n_wandb_logs n_eval_batches "
    "eval_batch_size_prompts",
    "logger verbose resume resume_from_checkpoint n_checkpoints checkpoint_path "
    "save_final_checkpoint output_path",
    "sae_lens_version sae_lens_training_version neuronpedia_id",
)
_OTHER_OUTPUT = {
    "d_out": "the output width of a transcoder",
    "hook_name_out": "a transcoder's output",
    "hook_point_out": "a transcoder's output",
    "hook_layer_out": "a transcoder's output",
    "hook_point_layer_out": "a transcoder's output",
    "hook_head_index_out": "a transcoder's output",
    "hf_hook_name_out": "a transcoder's output",
    "is_transcoder": "a transcoder",
}
SAELENS = KnownFields(
    used=_names(
        "architecture d_in d_sae k activation_fn activation_fn_str activation_fn_kwargs "
        "apply_b_dec_to_input",
        "normalize_activations reshape_activations rescale_acts_by_decoder_norm "
        "finetuning_scaling_factor metadata",
        "model_name hook_name hook_point hook_head_index hook_point_head_index "
        "model_from_pretrained_kwargs",
    ),
    # hook_name also contains the layer and the module.
    ignored=_DATA | _TRAINING | _BOOKKEEPING | _names("hook_layer hook_point_layer hf_hook_name"),
    off=_OTHER_OUTPUT,
)
SPARSIFY = KnownFields(
    used=_names("activation d_in expansion_factor num_latents k"),
    # normalize_decoder: the saved rows are normalised. multi_topk: a second loss. lookup_max_order
    # and gram_table_hash are used with gram_lookup only, n_targets and n_sources with transcode
    # only.
    ignored=_names(
        "normalize_decoder multi_topk lookup_max_order gram_table_hash n_targets n_sources dtype"
    ),
    off={
        "signed": "the k largest absolute values, of either sign",
        "transcode": "a transcoder",
        "skip_connection": "a linear skip connection",
        "embed_skip": "a skip connection from the embedding",
        "gram_lookup": "a table of n-gram means that is subtracted",
    },
)


def require_known(path: Path, cfg: Mapping[str, Any], known: KnownFields) -> None:
    """Check that a cfg.json has no unknown field and enables no unsupported feature.

    A field whose value is null is ignored.

    Raises:
        UserError: naming the file, the field and its value.
    """
    for key, value in cfg.items():
        if key in known.off and value:
            raise UserError(
                f"{path}: {key} is {json.dumps(value)} ({known.off[key]}), which is not supported; "
                f"expected a plain autoencoder, without {key}"
            )
        if value is not None and not (
            key in known.used or key in known.ignored or key in known.off
        ):
            copy = (
                "a folder that SAELens's save_model wrote"
                if str(path).startswith(SAELENS_NAME)
                else "a copy of the folder"
            )
            raise UserError(
                f"{path}: the field {key} (value {json.dumps(value)}) is unknown and may change "
                f"what the autoencoder computes; if it does not, remove it from {copy} and use "
                "that as sae.source"
            )


def require_flag(path: Path, cfg: Mapping[str, Any], key: str, default: bool) -> bool:
    """A boolean of a cfg.json; any other value raises a UserError."""
    value = cfg.get(key, default)
    if not isinstance(value, bool):
        raise UserError(f"{path}: {key} is {value!r}, expected true or false")
    return value

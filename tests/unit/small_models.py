"""Random models of two architectures and a byte-level tokenizer, for tests within milliseconds."""

import json
from pathlib import Path
from typing import Any

import torch

WORDS = [
    "The capital of France is Paris",
    "The atomic number of gold is 79",
    "Q: Who? A: Ada Lovelace",
    "São Paulo is a city",
]
LAYERS, WIDTH, CONTEXT = 4, 16, 64


def make_tokenizer() -> Any:
    """Byte-level BPE like GPT-2's: a word's token has its space; `<s>` separates texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>")


def make_model(kind: str, seed: int = 0) -> Any:
    """A random causal language model, `gpt2` or `llama`, in evaluation mode."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)  # two threads are not faster here, and collapse on a busy machine
    torch.manual_seed(seed)
    ends: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0}
    model: Any
    if kind == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=400,
                n_positions=CONTEXT,
                n_embd=WIDTH,
                n_layer=LAYERS,
                n_head=2,
                initializer_range=0.3,
                **ends,
            )
        )
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=400,
                hidden_size=WIDTH,
                intermediate_size=24,
                num_hidden_layers=LAYERS,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=CONTEXT,
                initializer_range=0.3,
                **ends,
            )
        )
    return model.requires_grad_(False).eval()


def magnified(model: Any, factor: int) -> Any:
    """A GPT-2 whose residual stream is `factor` times as large, with the same logits.

    Args:
        factor: a power of two, so that all values are multiplied exactly.
    """
    # The unembedding is a matrix of its own: the embedding alone is multiplied.
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone(), requires_grad=False)
    model.config.tie_word_embeddings = False
    parts = model.transformer
    written = [parts.wte, parts.wpe]
    for block in parts.h:
        written += [block.attn.c_proj, block.mlp.c_proj]
    for module in written:
        for parameter in module.parameters():
            parameter.mul_(factor)
    model.config.layer_norm_epsilon *= factor**2
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = model.config.layer_norm_epsilon
    return model


def exact(tokens: int = CONTEXT) -> Any:
    """Limits of a model that is exact in every fast path, for up to `tokens` tokens."""
    from ghosttrack.activations.limits import Limits

    return Limits(tokens, tokens, tokens, batched=True, skipped=True, named=True)


def save_check(folder: Path, tokens: int = CONTEXT, dtype: str = "float32") -> Path:
    """Write the check file of a model that is exact in every fast path."""
    from ghosttrack.inputs.model_precision import Precision
    from ghosttrack.runtime.files import write_json

    path = folder / "model_check.json"
    precision = Precision(dtype)._asdict()
    write_json(path, {"limits": exact(tokens)._asdict(), "precision": precision, "sublayers": []})
    return path


def save(model: Any, tokenizer: Any, directory: Path) -> None:
    """Write a model and tokenizer like a downloaded model."""
    from ghosttrack.runtime.files import sha256_file, write_json

    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    digests = {path.name: sha256_file(path) for path in directory.glob("*.*")}
    about = {
        "kind": "random",
        "id": "",
        "revision": None,
        "weights_sha256": digests["model.safetensors"],
    }
    write_json(directory / "source.json", {**about, "files_sha256": digests})


def save_gguf(model: Any, tokenizer: Any, path: Path) -> None:
    """Write a llama or falcon model and its tokenizer as one GGUF file in float32.

    The rows of queries and keys of llama are in GGUF's order.
    """
    import gguf

    config = model.config
    kind = {"llama": gguf.MODEL_ARCH.LLAMA, "falcon": gguf.MODEL_ARCH.FALCON}[config.model_type]
    writer = gguf.GGUFWriter(path, config.model_type)
    writer.add_name("small")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    if kind == gguf.MODEL_ARCH.LLAMA:
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    parts = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    words = sorted(parts["vocab"], key=parts["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3 if word == "<s>" else 1 for word in words])  # control, normal
    writer.add_token_merges([" ".join(merge) for merge in parts["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    heads = {
        "q_proj.weight": config.num_attention_heads,
        "k_proj.weight": getattr(config, "num_key_value_heads", 1),
    }
    for name, weight in model.state_dict().items():
        values = weight.numpy()
        for ending, count in heads.items():
            if name.endswith(ending):
                values = (
                    values.reshape(count, 2, -1, values.shape[1])
                    .swapaxes(1, 2)
                    .reshape(values.shape)
                )
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

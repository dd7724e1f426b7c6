"""Random models of two architectures and a byte-level tokenizer, small enough to run in milliseconds."""

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
    """Byte-level BPE with a space before each word in the word's token, as GPT-2's; `<s>` separates."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
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

    torch.set_num_threads(1)  # two threads gain nothing here, and collapse on a busy machine
    torch.manual_seed(seed)
    ends: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0}
    model: Any
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(
            vocab_size=400, n_positions=CONTEXT, n_embd=WIDTH, n_layer=LAYERS, n_head=2, initializer_range=0.3, **ends,
        ))  # fmt: skip
    else:
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=400, hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=LAYERS, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=CONTEXT, initializer_range=0.3, **ends,
        ))  # fmt: skip
    return model.requires_grad_(False).eval()


def save(model: Any, tokenizer: Any, directory: Path) -> None:
    """As a fetched model lies on disk."""
    from ghosttrack.files import sha256_file, write_json

    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    digest = sha256_file(directory / "model.safetensors")
    write_json(directory / "source.json", {"kind": "random", "id": "", "revision": None, "weights_sha256": digest})

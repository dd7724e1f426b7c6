"""Small real tokenizers of the common kinds, each in the directory of a small model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

TEXTS = [
    "The capital of France is Paris. The capital of Norway is Oslo.",
    "the answer is 42, one two three",
    "Москва и Париж, naïve café",
    "def f(x):\n    return x + 1",
]
ROWS = 400
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _bpe(
    special: list[str], metaspace: bool = False, size: int = 330
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a trained BPE: GPT-2's bytes, or SentencePiece's (`metaspace`)."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Metaspace()
        if metaspace
        else pre_tokenizers.ByteLevel(add_prefix_space=False)
    )
    alphabet = [] if metaspace else pre_tokenizers.ByteLevel.alphabet()
    first = [*special, *(_BYTES if metaspace else [])]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=first, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def gpt2() -> Any:
    from transformers import GPT2Tokenizer

    vocab, merges = _bpe(["<|endoftext|>"])
    return GPT2Tokenizer(vocab=vocab, merges=merges)


def qwen2() -> Any:
    from transformers import Qwen2Tokenizer

    vocab, merges = _bpe(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return Qwen2Tokenizer(vocab=vocab, merges=merges, eos_token="<|im_end|>")


def llama() -> Any:
    from transformers import LlamaTokenizer

    vocab, merges = _bpe(["<unk>", "<s>", "</s>"], metaspace=True)
    return LlamaTokenizer(vocab=vocab, merges=merges)


def gemma() -> Any:
    from transformers import GemmaTokenizer

    vocab, merges = _bpe(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"], metaspace=True)
    return GemmaTokenizer(vocab=vocab, merges=merges)


def t5() -> Any:
    from transformers import T5Tokenizer

    letters = sorted(
        {letter for text in [*TEXTS, "</>"] for letter in text if not letter.isspace()}
    )
    pieces = [
        ("<pad>", 0.0),
        ("</s>", -1e6),
        ("<unk>", 0.0),
        ("▁", -2.0),
        ("▁the", -3.0),
        ("is", -3.5),
    ]
    return T5Tokenizer(
        vocab=[*pieces, *((letter, -5.0) for letter in letters)], extra_ids=2, bos_token="</s>"
    )


def bert() -> Any:
    from transformers import BertTokenizer

    letters = sorted({letter for text in TEXTS for letter in text.lower() if not letter.isspace()})
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "capital", "is", *letters]
    words += [f"##{letter}" for letter in letters]
    return BertTokenizer(
        vocab={word: number for number, word in enumerate(words)},
        bos_token="[CLS]",
        eos_token="[SEP]",
    )


def word_level() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "<unk>", "The", "capital", "of", "France", "is", "Paris", "."]
    raw = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>")


def byte_level() -> Any:
    """A byte-level BPE for PreTrainedTokenizerFast, like those of Llama 3 and Pythia."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab, merges = _bpe(["<s>", "</s>"])
    raw = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")


KINDS: dict[str, Callable[[], Any]] = {
    "GPT-2": gpt2,
    "Qwen2": qwen2,
    "Llama": llama,
    "Gemma": gemma,
    "T5": t5,
    "BERT": bert,
    "words": word_level,
    "bytes": byte_level,
}


def save_model(directory: Path, rows: int = ROWS, model_type: str = "llama") -> None:
    """Save a model of one block and width 8 with `rows` embedding rows; all weights are 0.01."""
    import transformers

    config: Any = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}[model_type]
    with torch.random.fork_rng():
        model = transformers.AutoModelForCausalLM.from_config(
            config(
                vocab_size=rows,
                hidden_size=8,
                intermediate_size=8,
                num_hidden_layers=1,
                num_attention_heads=1,
                num_key_value_heads=1,
                max_position_embeddings=32,
                bos_token_id=0,
                eos_token_id=0,
                pad_token_id=None,
            )
        )
    for weight in model.parameters():
        weight.data.fill_(0.01)
    model.save_pretrained(directory)


def save(kind: str, directory: Path, model_type: str = "llama") -> None:
    """Save model and tokenizer of a kind with save_pretrained."""
    save_model(directory, model_type=model_type)
    KINDS[kind]().save_pretrained(directory)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file in place."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

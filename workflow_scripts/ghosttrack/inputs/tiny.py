"""The test model: a small GPT-2 with random weights and a word-level tokenizer.

It has learned nothing, so every detector must be at chance. It is built within seconds and is
bitwise equal on all machines: numpy draws the weights, because torch's normal numbers depend on the
processor.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from ghosttrack.facts import fact_text, statements
from ghosttrack.settings import DimensionSettings

SEPARATOR = "<|endoftext|>"
# Number of frequent words of the embedded texts in the vocabulary, next to all names of the fact
# tables. Other words are spelled in letters.
_WORDS = 2048
# Longer words are divided: the time to look up a word grows with the cube of its length.
_LONGEST = 32
# Number of documents in which words are counted; more would change only the rarest words.
_DOCUMENTS = 2000
# Inputs of test runs have fewer than 200 tokens, few-shot prompts with spelled words have more.
_CONTEXT = 512
_HEAD_WIDTH = 16
# Prefix of continuation pieces; not one of the 256 byte characters, so it is distinct from text.
_CONTINUED = "\u2581"


def build(destination: Path, dimensions: DimensionSettings, seed: int) -> None:
    """Write config.json, model.safetensors and the tokenizer to the directory `destination`."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = build_tokenizer()
    heads = max(1, dimensions.d_model // _HEAD_WIDTH)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=_CONTEXT,
        n_embd=dimensions.d_model,
        n_layer=dimensions.n_layers,
        n_head=heads if dimensions.d_model % heads == 0 else 1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = GPT2LMHeadModel(config)
    generator = np.random.default_rng(seed)
    # GPT-2's scale of .02 would make a narrow model almost linear; this one keeps unit variance.
    scale = dimensions.d_model**-0.5
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if weight.ndim > 1:
                values = generator.standard_normal(weight.shape, dtype=np.float32) * np.float32(
                    scale
                )
                weight.copy_(torch.from_numpy(values))
            else:
                weight.fill_(1.0 if name.endswith("weight") else 0.0)
    model.save_pretrained(destination)
    (destination / "model.safetensors").chmod(0o644)  # safetensors writes private files
    tokenizer.save_pretrained(destination)


def build_tokenizer() -> Any:
    """A tokenizer with frequent words as tokens, and bytes for all other text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    counts: Counter[str] = Counter()
    for text in _texts():
        counts.update(piece for piece, _ in splitter.pre_tokenize_str(text))
    names = {
        piece
        for pair in statements.known_pairs()
        for name in pair
        for piece, _ in splitter.pre_tokenize_str(f" {name}")
    }
    frequent = sorted(counts, key=lambda piece: (-counts[piece], piece))[:_WORDS]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = sorted(piece for piece in {*names, *frequent} if 1 < len(piece) <= _LONGEST)
    pieces = [SEPARATOR, *letters, *(_CONTINUED + letter for letter in letters), *words]
    tokenizer = Tokenizer(
        models.WordPiece(
            {piece: number for number, piece in enumerate(pieces)},
            unk_token=SEPARATOR,
            continuing_subword_prefix=_CONTINUED,
            max_input_chars_per_word=_LONGEST,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [splitter, pre_tokenizers.FixedLength(_LONGEST)]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_CONTINUED, ""), decoders.ByteLevel()])
    tokenizer.add_special_tokens([AddedToken(SEPARATOR, special=True, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SEPARATOR,
        eos_token=SEPARATOR,
        model_max_length=_CONTEXT,
    )


def _texts() -> Iterator[str]:
    """The embedded documents in which words are counted."""
    return chain(
        islice(fact_text.statement_documents(0), _DOCUMENTS),
        islice(fact_text.corpus_documents(0), _DOCUMENTS),
    )

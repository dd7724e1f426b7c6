"""Decide whether two names denote the same language model."""

import re
from collections.abc import Collection

# Words that only some copies of a model have in their name: publisher, file format, "pretrained".
_DROPPED = {"meta", "hf", "pt"}
# Normalised short names of TransformerLens and SAELens, with the normalised names of the hub.
_ALIASES = {
    "gpt2small": "gpt2",
    "distillgpt2": "distilgpt2",
    "mistral7b": "mistral7bv01",
    "gptj": "gptj6b",
}


def _normalised(name: str) -> str:
    """The last part of a name in lower case without separators: `openai-community/GPT2` is gpt2."""
    words = re.split(r"[^a-z0-9]+", name.rstrip("/").rsplit("/", 1)[-1].lower())
    joined = "".join(word for word in words if word not in _DROPPED)
    return _ALIASES.get(joined, joined)


def is_path(name: str) -> bool:
    """Whether a name is a local path, which does not identify a model."""
    return name.startswith(("/", "./", "../", "~")) or "\\" in name


def same(name: str, others: Collection[str]) -> bool:
    """Whether `name` and one of `others` denote the same model."""
    return _normalised(name) in {_normalised(other) for other in others}

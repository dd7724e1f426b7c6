"""Whether two names stand for the same language model."""

import re
from collections.abc import Collection

# Part of some copies' names only: the publisher, the file format, and "pretrained".
_DROPPED = {"meta", "hf", "pt"}
# Short names of TransformerLens and SAELens, normalised, with those of the hub.
_ALIASES = {
    "gpt2small": "gpt2",
    "distillgpt2": "distilgpt2",
    "mistral7b": "mistral7bv01",
    "gptj": "gptj6b",
}


def normalised(name: str) -> str:
    """The last part of a name or address in lower case, without separators: `openai-community/GPT2` is gpt2."""
    words = re.split(r"[^a-z0-9]+", name.rstrip("/").rsplit("/", 1)[-1].lower())
    joined = "".join(word for word in words if word not in _DROPPED)
    return _ALIASES.get(joined, joined)


def is_path(name: str) -> bool:
    """Whether a name is a local path, which says nothing about the model."""
    return name.startswith(("/", "./", "../", "~")) or "\\" in name


def same(name: str, others: Collection[str]) -> bool:
    """Whether `name` and one of `others` stand for the same model."""
    return normalised(name) in {normalised(other) for other in others}

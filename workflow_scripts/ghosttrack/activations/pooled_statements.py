"""Pooled activations of whole statements, and their files. Reading them back needs no torch."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ghosttrack.errors import UserError
from ghosttrack.runtime import files

# mean: over all tokens; last: the last token, usually the full stop; end: the token before it.
POOLS = ("mean", "last", "end")
OUTPUTS = (
    "surprise_mean",
    "surprise_max",
    "surprise_second",
    "surprise_late",
    "surprise_end",
    "entropy_mean",
    "excess_mean",
    "excess_max",
    "excess_late",
    "excess_end",
    "rank_mean",
    "rank_max",
    "rank_end",
    "margin_mean",
    "worst_position",
    "log_tokens",
)


class PooledTexts(NamedTuple):
    """states: (texts, layers, POOLS, d_model) float32; outputs: (texts, OUTPUTS) float64."""

    states: NDArray[np.float32]
    outputs: NDArray[np.float64]


class TokenScore(NamedTuple):
    """A linear score of a token: the sum of (x . weight - shift) over the layers, plus the intercept.

    weight: (layers, d_model); shift: (layers,).
    """

    weight: NDArray[np.float64]
    shift: NDArray[np.float64]
    intercept: float


class StatementTokens(NamedTuple):
    """Tokens of a statement.

    ranges: (tokens, 2) first character in `as_statement` of the text, and the one after the last;
    surprise: (tokens,) -log-probability in nats; score: (tokens,) by `TokenScore`. The mean score is
    the score of the activations' mean pool.
    """

    ranges: NDArray[np.int64]
    surprise: NDArray[np.float64]
    score: NDArray[np.float64]


def flat(states: NDArray[np.float32]) -> NDArray[np.float32]:
    """(texts, layers, POOLS, d_model) as (texts, POOLS, columns): all layers of a pool in one row."""
    texts, layers, pools, width = states.shape
    return np.ascontiguousarray(states.transpose(0, 2, 1, 3).reshape(texts, pools, layers * width))


def write(read: PooledTexts, path: Path, manifest: Path, attributes: Mapping[str, object]) -> None:
    """Write pooled texts atomically: states in half precision with a scale per layer, and outputs.

    The manifest holds the attributes and the SHA-256 of the file.
    """
    from safetensors.numpy import save as to_bytes

    # The largest value becomes 1: half precision has no range to spare for massive activations.
    scale = np.maximum(np.abs(read.states).max(axis=(0, 2, 3)), np.finfo(np.float32).tiny)
    states = (read.states / scale[:, None, None]).astype(np.float16)
    stored = to_bytes(
        {
            "states": states,
            "scale": scale.astype(np.float32),
            "outputs": np.ascontiguousarray(read.outputs),
        }
    )
    with files.atomic_write(path, "wb") as stream:
        stream.write(stored)
    described = {
        "pools": list(POOLS),
        "outputs": list(OUTPUTS),
        "texts": len(read.outputs),
        "sha256": hashlib.sha256(stored).hexdigest(),
        **attributes,
    }
    files.write_json(manifest, described)


def load(path: Path, manifest: Path, statements: Path) -> tuple[PooledTexts, dict[str, Any]]:
    """Pooled texts with the content of their manifest.

    Raises:
        UserError: a file was changed after it was written, or is of another version.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    about = files.read_object(manifest)
    if about.get("pools") != list(POOLS) or about.get("outputs") != list(OUTPUTS):
        raise UserError(
            f"{manifest} was written by another version of GhostTrack: delete it and run the "
            "workflow again"
        )
    stored = path.read_bytes()
    for changed, actual, expected in (
        (path, hashlib.sha256(stored).hexdigest(), about.get("sha256")),
        (statements, files.sha256_file(statements), about.get("statements_sha256")),
    ):
        if actual != expected:
            raise UserError(
                f"{changed} is not the file that {manifest} describes (damaged or edited): delete "
                f"{path.parent} and run the workflow again"
            )
    try:
        arrays = from_bytes(stored)
        states = arrays["states"].astype(np.float32) * arrays["scale"][:, None, None]
        return PooledTexts(states, arrays["outputs"]), about
    except (SafetensorError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it and run again") from None

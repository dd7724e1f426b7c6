"""The feature dictionary of one layer: for every feature what it fires on, what it speaks for, what resembles it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import parquet

from ghosttrack.errors import UserError
from ghosttrack.inputs.corpus import PackedTokens
from ghosttrack.inputs.token_text import TokenText, window_of
from ghosttrack.inputs.unembedding import Unembedding
from ghosttrack.runtime.files import atomic_write
from ghosttrack.sae.firing import SILENT_ROWS, Firing, collect
from ghosttrack.sae.logit_lens import Ranked, nearest, output_tokens
from ghosttrack.sae.model import Sae
from ghosttrack.sae.rows import Rows

# Entries of every list: what fits on a screen.
ENTRIES = 10
# Row groups of a file, so that one feature is found without reading all.
_GROUP = 256


def describe(
    sae: Sae, store: Rows, corpus: PackedTokens, text: TokenText, unembedding: Unembedding | None
) -> pa.Table:
    """The feature dictionary, one row per feature in order; columns are described in docs/outputs.md.

    What comes from text is empty where a feature never fires on it.

    Args:
        sae: the autoencoder.
        store: held-out activations.
        corpus: the tokens that they were computed from, row by row.
        text: of the same tokenizer.
        unembedding: of the same model; None: no output tokens.
    Raises:
        UserError: autoencoder and rows differ in width.
    """
    if store.d_model != sae.d_model:
        raise UserError(
            f"the held-out rows have {store.d_model} dimensions, the autoencoder {sae.d_model}: delete it and run again"
        )
    output = Ranked(np.empty((sae.d_sae, 0), np.int64), np.empty((sae.d_sae, 0), np.float32))
    if unembedding is not None:
        output = output_tokens(sae.W_dec, unembedding, text.size, ENTRIES)
    similar = nearest(sae.W_dec, ENTRIES)
    found = collect(sae, store, corpus.tokens.reshape(-1), ENTRIES)
    return pa.table(
        {
            "feature": pa.array(range(sae.d_sae), pa.int32()),
            **_activity(found),
            **_tokens(found, text),
            **_contexts(found, corpus, text),
            "output_token": _rows(output.entry, pa.int32()),
            "output_text": _lists(
                [text.alone(token) for token in output.entry.reshape(-1).tolist()], _even(output)
            ),
            "output_logit": _rows(output.value, pa.float32()),
            "nearest": _rows(similar.entry, pa.int32()),
            "nearest_cosine": _rows(similar.value, pa.float32()),
        }
    )


def write(table: pa.Table, path: Path, about: dict[str, Any]) -> None:
    """Write the dictionary, atomically; `about` is kept in the file as pandas' `attrs`. Same content, same bytes."""
    described = table.replace_schema_metadata({"PANDAS_ATTRS": json.dumps(about, sort_keys=True)})
    with atomic_write(path, "wb") as stream:
        parquet.write_table(described, stream, compression="zstd", row_group_size=_GROUP)


def _activity(found: Firing) -> dict[str, pa.Array]:
    top = found.rows_of
    strongest = np.zeros(len(found.fired), dtype=np.float32)
    np.maximum.at(strongest, top.feature, top.activation)
    return {
        "density": pa.array(found.fired / max(found.rows, 1), pa.float32()),
        "activation_mean": pa.array(found.total / np.maximum(found.fired, 1), pa.float32()),
        "activation_max": pa.array(strongest, pa.float32()),
    }


def _tokens(found: Firing, text: TokenText) -> dict[str, pa.Array]:
    best = found.tokens_of
    counts = np.bincount(best.feature, minlength=len(found.fired))
    seen = found.occurrences[best.token]
    return {
        "top_token": _lists(best.token, counts, pa.int32()),
        "top_text": _lists([text.alone(token) for token in best.token.tolist()], counts),
        "top_mean": _lists(best.score * (seen + SILENT_ROWS) / seen, counts, pa.float32()),
        "top_share": _lists(best.total / found.total[best.feature], counts, pa.float32()),
    }


def _contexts(found: Firing, corpus: PackedTokens, text: TokenText) -> dict[str, pa.Array]:
    top = found.rows_of
    counts = np.bincount(top.feature, minlength=len(found.fired))
    # A row is often among the best of several features.
    rows, place = np.unique(top.row, return_inverse=True)
    windows = [window_of(corpus, row, text) for row in rows.tolist()]
    before, token, after = ([window[part] for window in windows] for part in range(3))
    return {
        "context_row": _lists(top.row, counts, pa.int64()),
        "context_document": _lists(corpus.documents.reshape(-1)[top.row], counts, pa.int32()),
        "context_activation": _lists(top.activation, counts, pa.float32()),
        **{
            f"context_{name}": _lists([part[at] for at in place.tolist()], counts)
            for name, part in (("before", before), ("token", token), ("after", after))
        },
    }


def _lists(
    values: Sequence[str] | npt.NDArray[Any], counts: npt.NDArray[np.int64], kind: Any = None
) -> pa.Array:
    """One list a feature from the values of all in a row."""
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, kind or pa.string()))


def _even(ranked: Ranked) -> npt.NDArray[np.int64]:
    """How many entries each feature has."""
    return np.full(len(ranked.entry), ranked.entry.shape[1], dtype=np.int64)


def _rows(values: npt.NDArray[Any], kind: Any) -> pa.Array:
    """One list a feature from the rows of an array (d_sae, count)."""
    return _lists(values.reshape(-1), np.full(len(values), values.shape[1], dtype=np.int64), kind)

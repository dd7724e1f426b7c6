"""Every metric of a data set in one pass over its tracks: one row per example."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ghosttrack.errors import UserError
from ghosttrack.tracks import competition, generation_axis, metrics, reconstruction
from ghosttrack.tracks.generation_axis import Steps
from ghosttrack.tracks.track_table import ROWS, Table

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Those of single tokens, and all in the order of the columns.
TOKEN_NAMES = (*metrics.NAMES, *competition.NAMES)
NAMES = (*TOKEN_NAMES, *reconstruction.NAMES, *generation_axis.NAMES)
# Tokens measured at once: the temporaries of one block stay in the processor's cache.
BLOCK = 256


class Tracks(Protocol):
    """What is read of a track store."""

    rows: int
    top_k: int
    scale: Floats

    def read(self, start: int, stop: int) -> Table: ...  # noqa: D102


class Measured(NamedTuple):
    """`signals`: one row per example, the columns NAMES; `lengths`: tracks with 1, 2, ... detections; `links`: of all
    rows, (layers,) those that lead into each layer."""

    signals: pd.DataFrame
    lengths: Ints
    links: Ints


def measure_examples(
    tracks: Tracks,
    row_start: Ints,
    row_count: Ints,
    lookup: Sequence[NDArray[np.int32]],
    errors: NDArray[np.float32],
) -> Measured:
    """Measure every token and average over each example's tokens that have detections; 0 without such tokens.

    Args:
        row_start, row_count: (examples,) rows of each example.
        lookup: cluster of every feature, (d_sae,) for each layer in the tracks' order.
        errors: (rows, layers) of reconstruction, in the natural order of the layers.
    Raises:
        UserError: an example has no rows, or rows beyond the tracks; the errors are those of other rows.
    """
    if (
        (row_count < 1).any()
        or (row_start < 0).any()
        or (row_start + row_count > tracks.rows).any()
    ):
        raise UserError(
            f"examples name rows {int(row_start.min())} to {int((row_start + row_count).max()) - 1}, at least "
            f"{int(row_count.min())} each; the tracks have {tracks.rows}: delete outputs.parquet and the tracks and run again"
        )
    if len(errors) != tracks.rows:
        raise UserError(
            f"the reconstruction errors are those of {len(errors)} rows, the tracks have {tracks.rows}: "
            "delete both and run again, rule track_features remakes them"
        )
    layers = len(lookup)
    lengths, links = np.zeros(layers + 1, np.int64), np.zeros(layers, np.int64)
    tokens: list[Floats] = []
    steps: list[Steps] = []
    for start in range(0, tracks.rows, ROWS):
        # One row more: the last step of the batch ends there.
        batch = tracks.read(start, min(start + ROWS + 1, tracks.rows))
        size = min(ROWS, tracks.rows - start)
        for first in range(0, size, BLOCK):
            count = min(BLOCK, size - first)
            wide = batch.part(first, first + count + 1)
            own = wide.part(0, count)
            cluster = competition.clusters_of(wide, lookup)
            own_metrics = metrics.measure(own, tracks.scale)
            tokens.append(
                np.hstack([own_metrics, competition.measure(own, cluster[:count], tracks.top_k)])
            )
            found = generation_axis.measure_steps(
                wide, cluster, metrics.track_numbers(wide), tracks.scale
            )
            steps.append(found._replace(detections=found.detections[:count]))
            number = metrics.track_numbers(own)
            lengths += np.bincount(np.bincount(number[number >= 0]), minlength=layers + 1)
            links += (own.gap > 0).sum((0, 2))
    parts = [
        _mean(np.concatenate(tokens), row_start, row_count),
        _mean(reconstruction.measure(errors), row_start, row_count),
        generation_axis.of_examples(
            Steps(*(np.concatenate(column) for column in zip(*steps, strict=True))),
            row_start,
            row_count,
        ),
    ]
    return Measured(pd.DataFrame(np.hstack(parts), columns=list(NAMES)), lengths[1:], links)


def _mean(tokens: Floats, row_start: Ints, row_count: Ints) -> Floats:
    """Means over the rows of each example that are known, (examples, metrics); a row with NaN in the first column is not."""
    example = np.repeat(np.arange(len(row_start)), row_count)
    row = (
        np.arange(len(example))
        - np.repeat(np.cumsum(row_count) - row_count, row_count)
        + np.repeat(row_start, row_count)
    )
    values, known = tokens[row], np.isfinite(tokens[row, 0])
    counts = np.bincount(example[known], minlength=len(row_start))
    sums = [
        np.bincount(example[known], column, minlength=len(row_start)) for column in values[known].T
    ]
    return np.stack(sums, axis=1) / np.maximum(counts, 1)[:, None]

"""All track metrics of a data set in one pass over its tracks, one row per example."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ghosttrack.errors import UserError
from ghosttrack.tracks import competition, generation_axis, metrics, reconstruction
from ghosttrack.tracks.generation_axis import StepMetrics
from ghosttrack.tracks.track_table import ROWS, TrackTable

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Metrics of single tokens, and all metrics in the order of the columns.
TOKEN_NAMES = (*metrics.NAMES, *competition.NAMES)
NAMES = (*TOKEN_NAMES, *reconstruction.NAMES, *generation_axis.NAMES)
# Tokens per block: its temporaries fit into the processor's cache.
BLOCK = 256


class ReadableTracks(Protocol):
    """The part of a TrackReader that the metrics need."""

    rows: int
    top_k: int
    scale: Floats

    def read(self, start: int, stop: int) -> TrackTable: ...  # noqa: D102


class ExampleMetrics(NamedTuple):
    """Metrics of all examples, and statistics of the tracks."""

    metrics: pd.DataFrame  # one row per example, columns NAMES
    lengths: Ints  # (layers,) number of tracks with 1, 2, ... detections
    links: Ints  # (layers,) number of links into each layer


def measure_examples(
    tracks: ReadableTracks,
    row_start: Ints,
    row_count: Ints,
    lookup: Sequence[NDArray[np.int32]],
    errors: NDArray[np.float32],
) -> ExampleMetrics:
    """Compute all metrics of every token, and average them over the tokens of each example.

    Tokens without detections do not count. An example without any other token has 0 for the metrics
    of single tokens.

    Args:
        row_start, row_count: (examples,) rows of each example.
        lookup: cluster of every feature, (d_sae,) for each layer in the tracks' order.
        errors: (rows, layers) reconstruction errors, in the natural order of the layers.

    Raises:
        UserError: an example has no rows or rows beyond the tracks, or the errors have another
            number of rows.
    """
    if (
        (row_count < 1).any()
        or (row_start < 0).any()
        or (row_start + row_count > tracks.rows).any()
    ):
        raise UserError(
            f"outputs.parquet: examples have rows {int(row_start.min())} to "
            f"{int((row_start + row_count).max()) - 1}, the shortest has {int(row_count.min())}, "
            f"but the tracks have {tracks.rows} rows: delete outputs.parquet and the tracks, "
            "and run again"
        )
    if len(errors) != tracks.rows:
        raise UserError(
            f"the reconstruction errors have {len(errors)} rows, the tracks {tracks.rows}: "
            "delete both and run again, rule track_features writes them again"
        )
    layers = len(lookup)
    lengths, links = np.zeros(layers + 1, np.int64), np.zeros(layers, np.int64)
    tokens: list[Floats] = []
    steps: list[StepMetrics] = []
    for start in range(0, tracks.rows, ROWS):
        # One more row, because the last step of the batch ends there.
        batch = tracks.read(start, min(start + ROWS + 1, tracks.rows))
        size = min(ROWS, tracks.rows - start)
        for offset in range(0, size, BLOCK):
            count = min(BLOCK, size - offset)
            with_next = batch.part(offset, offset + count + 1)
            rows = with_next.part(0, count)
            cluster = competition.clusters_of(with_next, lookup)
            values = metrics.measure(rows, tracks.scale)
            tokens.append(
                np.hstack([values, competition.measure(rows, cluster[:count], tracks.top_k)])
            )
            step = generation_axis.measure_steps(
                with_next, cluster, metrics.track_numbers(with_next), tracks.scale
            )
            steps.append(step._replace(detections=step.detections[:count]))
            track = metrics.track_numbers(rows)
            lengths += np.bincount(np.bincount(track[track >= 0]), minlength=layers + 1)
            links += (rows.gap > 0).sum((0, 2))
    parts = [
        _mean(np.concatenate(tokens), row_start, row_count),
        _mean(reconstruction.measure(errors), row_start, row_count),
        generation_axis.average_steps(
            StepMetrics(*(np.concatenate(column) for column in zip(*steps, strict=True))),
            row_start,
            row_count,
        ),
    ]
    return ExampleMetrics(pd.DataFrame(np.hstack(parts), columns=list(NAMES)), lengths[1:], links)


def _mean(tokens: Floats, row_start: Ints, row_count: Ints) -> Floats:
    """Means over the known rows of each example, (examples, metrics).

    A row with NaN in the first column is unknown.
    """
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

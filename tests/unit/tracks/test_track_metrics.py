"""All metrics of a data set: means over answers, independence of blocks, and redundant metrics."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from small_tracks import random_table

from ghosttrack.errors import UserError
from ghosttrack.runtime import files
from ghosttrack.tracks import (
    competition,
    generation_axis,
    metrics,
    reconstruction,
    track_metrics,
    track_table,
)
from ghosttrack.tracks.redundancy import rank, redundancy
from ghosttrack.tracks.track_metrics import NAMES, measure_examples
from ghosttrack.tracks.track_table import TrackTable
from track import measure_signals

# 50 features in six clusters, the same in every layer.
CLUSTER = np.arange(50, dtype=np.int32) // 9


class MemoryTracks:
    def __init__(self, table: TrackTable) -> None:
        self.table, self.rows, self.top_k = table, len(table.feature), 4
        self.scale = np.ones(table.feature.shape[1])

    def read(self, start: int, stop: int) -> Any:
        return self.table.part(start, stop)


def errors_of(rows: int, layers: int) -> np.ndarray:
    errors = np.random.default_rng(rows).random((rows, layers)).astype(np.float32)
    errors[3 % rows] = np.nan
    return errors


def measured(
    table: TrackTable, start: list[int], count: list[int], errors: np.ndarray | None = None
) -> track_metrics.ExampleMetrics:
    rows, layers, _ = table.feature.shape
    row_errors = errors_of(rows, layers) if errors is None else errors
    return measure_examples(
        MemoryTracks(table), np.array(start), np.array(count), [CLUSTER] * layers, row_errors
    )


def test_an_example_is_the_mean_of_its_known_tokens() -> None:
    table = random_table(30, 3, 5, seed=2)
    start, count = [0, 3, 4, 20], [3, 1, 16, 10]  # token 3 is empty, and its error is unknown
    means = measured(table, start, count).metrics.to_numpy()
    cluster = competition.clusters_of(table, [CLUSTER] * 3)
    steps = generation_axis.measure_steps(table, cluster, metrics.track_numbers(table), np.ones(3))
    tokens = np.hstack([metrics.measure(table, np.ones(3)), competition.measure(table, cluster, 4)])
    errors = reconstruction.measure(errors_of(30, 3))
    written = generation_axis.average_steps(steps, np.array(start), np.array(count))
    for example, (first, size) in enumerate(zip(start, count, strict=True)):
        expected = []
        for values in (tokens, errors):
            rows = values[first : first + size]
            rows = rows[np.isfinite(rows[:, 0])]
            expected.append(rows.mean(0) if len(rows) else np.zeros(values.shape[1]))
        assert means[example] == pytest.approx(
            np.concatenate([*expected, written[example]]), nan_ok=True
        )


def test_blocks_and_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    table = random_table(41, 3, 5, seed=7)
    whole = measured(table, [0, 20, 23], [20, 3, 18])
    for rows, block in ((12, 5), (41, 41), (7, 7), (10, 3), (4, 100)):
        monkeypatch.setattr(track_metrics, "ROWS", rows)
        monkeypatch.setattr(track_metrics, "BLOCK", block)
        result = measured(table, [0, 20, 23], [20, 3, 18])
        pd.testing.assert_frame_equal(result.metrics, whole.metrics)
        assert result.lengths.tolist() == whole.lengths.tolist()
        assert result.links.tolist() == whole.links.tolist()


def test_lengths_and_links_are_counted() -> None:
    table = random_table(41, 4, 5, seed=8)
    result = measured(table, [0], [41])
    number = metrics.track_numbers(table)
    sizes = pd.Series(number[number >= 0]).value_counts().value_counts()
    assert result.lengths.tolist() == [int(sizes.get(length, 0)) for length in (1, 2, 3, 4)]
    assert result.links.tolist() == (table.gap > 0).sum((0, 2)).tolist()


def test_only_the_metrics_documented_so_grow_with_the_length() -> None:
    table = random_table(4, 3, 5, seed=4, silent=False)
    twice = TrackTable(*(np.concatenate([column, column]) for column in cast(Any, table)))
    errors = errors_of(4, 3)
    once = measured(table, [0], [4], errors).metrics
    again = measured(twice, [0], [8], np.concatenate([errors, errors])).metrics
    free = [name for name in NAMES if not name.startswith("generation_")]
    assert again[free].to_numpy() == pytest.approx(once[free].to_numpy())
    # Steps are within an example: rows of another example before it change nothing.
    turned = TrackTable(
        *(np.concatenate([column[:2], column[:1], column[:2]]) for column in cast(Any, table))
    )
    there = measured(
        TrackTable(*(column[:2] for column in cast(Any, table))), [0], [2], errors[:2]
    ).metrics
    back = measured(
        turned, [2 + 1], [2], np.concatenate([errors[:2], errors[:1], errors[:2]])
    ).metrics
    pd.testing.assert_frame_equal(there, back)
    grows = {"generation_steps", "generation_run_length"}
    still = TrackTable(*(np.repeat(column[:1], 6, axis=0) for column in cast(Any, table)))
    short = measured(
        TrackTable(*(column[:3] for column in cast(Any, still))),
        [0],
        [3],
        np.repeat(errors[:1], 3, axis=0),
    ).metrics
    long = measured(still, [0], [6], np.repeat(errors[:1], 6, axis=0)).metrics
    changed = {name for name in NAMES if short[name].item() != pytest.approx(long[name].item())}
    assert changed == grows


def test_rows_outside_the_tracks_and_errors_of_other_rows_are_refused() -> None:
    table = random_table(5, 2, 3, seed=0)
    with pytest.raises(UserError, match="the tracks have 5"):
        measured(table, [0, 3], [3, 3])
    with pytest.raises(UserError, match="errors have 4 rows, the tracks 5"):
        measured(table, [0], [5], np.zeros((4, 2), np.float32))


def test_constant_and_repeated_metrics_and_the_rank() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.random(50), generator.random(50)
    noisy = a + 1e-3 * generator.random(50)
    gaps = np.where(np.arange(50) % 3 == 0, np.nan, b)  # known for some examples: there it is b
    table = pd.DataFrame(
        {
            "x_a": a,
            "flat": 0.1,
            "b": b,
            "twice": 3 - 2 * a,
            "sum": a + b,
            "noisy": noisy,
            "gaps": gaps,
            "none": np.nan,
        }
    )
    redundant = redundancy(table, list(table)).set_index("metric")
    assert redundant.index[redundant["constant"]].tolist() == ["flat", "none"]
    assert redundant["repeats"][lambda repeats: repeats != ""].to_dict() == {
        "twice": "x_a",
        "noisy": "x_a",
        "gaps": "b",
    }
    assert redundant.loc["twice", "correlation"] == pytest.approx(-1)
    assert 0.999 < redundant.loc["noisy", "correlation"] < 1
    assert np.isnan(redundant.loc[["x_a", "flat"], "correlation"]).all()
    assert abs(redundant.loc["sum", "correlation"]) < 0.999
    assert redundant.loc["b", "correlation"] == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert redundant.loc["x_a", "family"] == "x"
    assert rank(table, list(table)) == 4


def test_the_script_writes_one_row_per_example_and_the_redundant_metrics(tmp_path: Path) -> None:
    table = random_table(12, 3, 5, seed=6)
    with track_table.writer(tmp_path / "t.zarr", rows=12, layers=3, slots=5, chunk_slots=5) as out:
        out.append(table)
        out.finish({})
    about = {
        "rows": 12,
        "layers": [1, 2, 3],
        "variant": "default",
        "top_k": 5,
        "activation_scale": [1.0, 2.0, 3.0],
    }
    files.write_json(
        tmp_path / "t.json", {**about, "store_sha256": track_table.digest(tmp_path / "t.zarr")}
    )
    pd.DataFrame(
        {"id": ["x", "y", "z"], "row_start": [0, 4, 6], "row_count": [4, 2, 6]}
    ).to_parquet(tmp_path / "o.parquet")
    pd.DataFrame(errors_of(12, 3), columns=["layer_01", "layer_02", "layer_03"]).to_parquet(
        tmp_path / "e.parquet"
    )
    clusters = pd.DataFrame(
        {
            "layer": np.repeat([1, 2, 3], 50),
            "feature": np.tile(np.arange(50), 3),
            "cluster": np.tile(CLUSTER, 3),
        }
    )
    clusters.to_parquet(tmp_path / "c.parquet")
    measure_signals.main(
        tracks=[tmp_path / "t.zarr"] * 2,
        tracks_manifests=[tmp_path / "t.json"] * 2,
        variants=["default", "untracked"],
        outputs=tmp_path / "o.parquet",
        track_metrics=[tmp_path / "one.parquet", tmp_path / "two.parquet"],
        errors=tmp_path / "e.parquet",
        clusters=tmp_path / "c.parquet",
        redundant=tmp_path / "r.csv",
    )
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    rows_written = pd.read_parquet(tmp_path / "one.parquet")
    assert list(rows_written) == ["id", *NAMES]
    assert rows_written["id"].tolist() == ["x", "y", "z"]
    assert np.isfinite(rows_written[list(NAMES)]).all(axis=None)
    assert rows_written.attrs["layers"] == [1, 2, 3]
    assert rows_written.attrs["rows"] == 12
    assert rows_written.attrs["links"] == (table.gap > 0).sum((0, 2)).tolist()
    assert sum(rows_written.attrs["track_lengths"]) == metrics.track_numbers(table).max() + 1
    redundant = pd.read_csv(tmp_path / "r.csv").set_index(["variant", "metric"])
    assert len(redundant) == 2 * len(NAMES)
    assert redundant.loc[("untracked", "churn_births_per_layer"), "repeats"] == "churn_births"
    clusters[clusters["layer"] != 2].to_parquet(tmp_path / "c.parquet")
    with pytest.raises(UserError, match=r"clusters\.parquet: its 0 features of layer 2"):
        measure_signals.main(
            tracks=[tmp_path / "t.zarr"],
            tracks_manifests=[tmp_path / "t.json"],
            variants=["default"],
            outputs=tmp_path / "o.parquet",
            track_metrics=[tmp_path / "one.parquet"],
            errors=tmp_path / "e.parquet",
            clusters=tmp_path / "c.parquet",
            redundant=tmp_path / "r.csv",
        )

"""Tracking: hand-worked cases, a slow dense reference of the tracker, the nulls, and the format."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from ghosttrack.activations.store import Header, to_block
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.errors import UserError
from ghosttrack.runtime import files
from ghosttrack.sae import Sae
from ghosttrack.sae.model import save as save_sae
from ghosttrack.settings import TrackingSettings
from ghosttrack.tracks import track_run, track_table
from ghosttrack.tracks.neighbours import Links, compare, links, save
from ghosttrack.tracks.track_table import TrackTable
from ghosttrack.tracks.tracking import (
    Detections,
    TrackerOptions,
    detect,
    follow,
    shuffle_links,
    shuffled_order,
)
from track import find_neighbours, track_features


def link_table(pairs: dict[tuple[int, int], float], d_sae: int = 10) -> Links:
    """Links given as {(lower feature, upper feature): surplus}."""
    ordered = sorted(pairs)
    start = np.searchsorted([lower for lower, _ in ordered], np.arange(d_sae + 1))
    return Links(
        start.astype(np.int64),
        np.array([upper for _, upper in ordered], np.int32),
        np.array([pairs[pair] for pair in ordered], np.float32),
    )


def one_row(*pairs: tuple[int, float]) -> Detections:
    return Detections(
        np.array([[feature for feature, _ in pairs]], np.int32),
        np.array([[activation for _, activation in pairs]], np.float32),
    )


PLAIN = TrackerOptions(top_k=3, second_association=1, coast=0, activation_weight=0.0)


def test_detections_are_the_strongest_active_features() -> None:
    code = np.array([[0.0, 2.0, 5.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0]], np.float32)
    detections = detect(code, 3)
    assert detections.feature.tolist() == [[2, 1, 3], [-1, -1, -1]]
    assert detections.activation.tolist() == [[5.0, 2.0, 2.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("rows", [1, 3])
def test_tokens_without_any_active_feature_have_no_detection_and_no_track(rows: int) -> None:
    silent = detect(np.zeros((rows, 5), np.float32), 3)
    assert silent.feature.tolist() == [[-1]] * rows
    assert silent.activation.tolist() == [[0.0]] * rows
    result = follow(
        [silent] * 3, [link_table({(1, 2): 0.5})] * 2, [link_table({})], PLAIN._replace(coast=1)
    )
    assert (result.table.feature == -1).all()
    assert (result.candidates, result.hard) == (0, 0)


def test_a_link_above_the_gate_continues_a_track_and_the_rest_are_births() -> None:
    layers = [one_row((1, 3.0), (2, 2.0)), one_row((7, 4.0), (5, 1.0))]
    table = follow(layers, [link_table({(2, 7): 0.3})], [], PLAIN).table
    assert table.feature[0].tolist() == [[1, 2], [7, 5]]
    assert table.previous[0].tolist() == [[-1, -1], [1, -1]]
    assert table.gap[0].tolist() == [[0, 0], [1, 0]]
    assert table.surplus[0, 1] == pytest.approx([0.3, 0.0])


def test_a_change_of_activation_can_cost_more_than_the_similarity_gives() -> None:
    layers = [one_row((1, 3.0)), one_row((7, 1.0))]  # relative change (3 - 1) / (3 + 1) = .5
    link = [link_table({(1, 7): 0.2})]
    assert follow(layers, link, [], PLAIN._replace(activation_weight=0.39)).table.gap[0, 1, 0] == 1
    assert follow(layers, link, [], PLAIN._replace(activation_weight=0.41)).table.gap[0, 1, 0] == 0


def test_a_track_coasts_over_one_silent_layer_and_dies_after_two() -> None:
    layers = [one_row((1, 1.0)), one_row((9, 1.0)), one_row((4, 1.0)), one_row((6, 1.0))]
    skip = [link_table({(1, 4): 0.2}), link_table({})]
    nothing = [link_table({})] * 3
    table = follow(layers, nothing, skip, PLAIN._replace(coast=1)).table
    assert table.gap[0, :, 0].tolist() == [0, 0, 2, 0]
    assert table.previous[0, :, 0].tolist() == [-1, -1, 0, -1]
    assert (follow(layers, nothing, skip, PLAIN).table.gap == 0).all()


def test_a_track_that_was_continued_does_not_coast_as_well() -> None:
    layers = [one_row((1, 1.0)), one_row((2, 1.0)), one_row((4, 1.0))]
    table = follow(
        layers,
        [link_table({(1, 2): 0.1}), link_table({})],
        [link_table({(1, 4): 0.9})],
        PLAIN._replace(coast=1),
    ).table
    assert table.gap[0, :, 0].tolist() == [0, 1, 0]


def test_a_coasting_track_and_a_fresh_one_compete_for_the_same_detection() -> None:
    layers = [one_row((1, 1.0)), one_row((2, 1.0)), one_row((4, 1.0))]
    options = PLAIN._replace(coast=1)
    adjacent = [link_table({}), link_table({(2, 4): 0.3})]
    assert follow(layers, adjacent, [link_table({(1, 4): 0.2})], options).table.gap[0, 2, 0] == 1
    assert follow(layers, adjacent, [link_table({(1, 4): 0.4})], options).table.gap[0, 2, 0] == 2


def test_a_weak_detection_continues_a_track_but_starts_none() -> None:
    options = TrackerOptions(top_k=1, second_association=2, coast=0, activation_weight=0.0)
    layers = [one_row((1, 3.0), (2, 1.0)), one_row((5, 4.0), (6, 2.0)), one_row((8, 3.0), (9, 1.0))]
    adjacent = [link_table({(1, 6): 0.2}), link_table({(6, 9): 0.1})]
    table = follow(layers, adjacent, [], options).table
    assert table.feature[0].tolist() == [[1, -1], [5, 6], [8, 9]]
    assert table.previous[0].tolist() == [[-1, -1], [-1, 0], [-1, 1]]


def slow_follow(
    codes: list[np.ndarray],
    decoders: list[np.ndarray],
    gates: dict[tuple[int, int], float],
    options: TrackerOptions,
) -> list[Any]:
    """Token by token with dense similarities: per layer a list of (feature, previous, gap)."""
    unit = [decoder / np.linalg.norm(decoder, axis=1, keepdims=True) for decoder in decoders]
    tokens = []
    for token in range(len(codes[0])):
        layers: list[list[tuple[int, float, int, int]]] = []
        taken: list[set[int]] = []
        for at, code in enumerate(codes):
            ranked = sorted(np.flatnonzero(code[token] > 0), key=lambda f: (-code[token, f], f))[
                : options.ranks
            ]
            sources = []
            for gap in (1, 2) if options.coast else (1,):
                if at >= gap:
                    sources += [
                        (gap, slot)
                        for slot in range(len(layers[at - gap]))
                        if slot not in taken[at - gap]
                    ]
            value = np.zeros((len(sources), len(ranked)))
            for i, (gap, slot) in enumerate(sources):
                feature, a = layers[at - gap][slot][:2]
                for j, other in enumerate(ranked):
                    b = code[token, other]
                    cosine = float(unit[at - gap][feature] @ unit[at][other])
                    value[i, j] = (
                        cosine
                        - gates[at - gap, at]
                        - options.activation_weight * abs(a - b) / (a + b)
                    )
            match = {}
            for i, j in zip(
                *linear_sum_assignment(np.maximum(value, 0), maximize=True), strict=True
            ):
                if value[i, j] > 0:
                    match[j] = sources[i]
                    taken[at - sources[i][0]].add(sources[i][1])
            kept = [j for j in range(len(ranked)) if j < options.top_k or j in match]
            layers.append(
                [
                    (
                        int(ranked[j]),
                        float(code[token, ranked[j]]),
                        match[j][1] if j in match else -1,
                        match[j][0] if j in match else 0,
                    )
                    for j in kept
                ]
            )
            taken.append(set())
        tokens.append(layers)
    return tokens


@pytest.mark.parametrize(
    "options",
    [TrackerOptions(6, 3, 1, 0.2), TrackerOptions(8, 1, 0, 0.0), TrackerOptions(5, 2, 1, 0.05)],
)
def test_the_tracker_equals_a_slow_reference_with_all_similarities(options: TrackerOptions) -> None:
    generator = np.random.default_rng(3)
    base = generator.standard_normal((40, 16))
    decoders = [base + 0.6 * generator.standard_normal(base.shape) for _ in range(5)]
    level = generator.random((25, 40)) * (generator.random((25, 40)) < 0.5)
    codes = [
        (
            level * (generator.random(level.shape) < 0.8) * (0.5 + generator.random(level.shape))
        ).astype(np.float32)
        for _ in decoders
    ]
    tensors = [torch.tensor(decoder, dtype=torch.float32) for decoder in decoders]
    comparisons = {
        (i, i + gap): compare(tensors[i], tensors[i + gap], 40, 0.9, [i, gap])
        for gap in (1, 2)
        for i in range(5 - gap)
    }
    table = follow(
        [detect(code, options.ranks) for code in codes],
        [links(comparisons[i, i + 1].real, comparisons[i, i + 1].gate) for i in range(4)],
        [links(comparisons[i, i + 2].real, comparisons[i, i + 2].gate) for i in range(3)],
        options,
    ).table
    expected = slow_follow(
        codes,
        decoders,
        {pair: comparison.gate for pair, comparison in comparisons.items()},
        options,
    )
    for token, layers in enumerate(expected):
        for position, detections in enumerate(layers):
            columns = (table.feature, table.activation, table.previous, table.gap)
            used = int((table.feature[token, position] >= 0).sum())
            ours = list(
                zip(*(column[token, position, :used].tolist() for column in columns), strict=True)
            )
            assert ours == detections
    assert (table.gap == 1).sum() > 100
    assert not options.coast or (table.gap == 2).sum() > 10


def random_tracks(rows: int = 60) -> tuple[TrackTable, TrackerOptions]:
    generator = np.random.default_rng(5)
    options = TrackerOptions(6, 2, 1, 0.0)
    decoders = [torch.randn(30, 8, generator=torch.Generator().manual_seed(0)) for _ in range(5)]
    codes = [
        (generator.random((rows, 30)) * (generator.random((rows, 30)) < 0.35)).astype(np.float32)
        for _ in decoders
    ]
    pair = compare(decoders[0], decoders[1], 30, 0.9, [0])
    same = links(pair.real, 0.4)
    return follow(
        [detect(code, options.ranks) for code in codes], [same] * 4, [same] * 3, options
    ).table, options


def test_shuffled_links_keep_detections_and_counts_and_never_reuse_a_slot() -> None:
    table, options = random_tracks()
    null = shuffle_links(table, options.top_k, np.random.default_rng(0))
    assert np.array_equal(null.feature, table.feature)
    for size in (1, 2):
        assert (table.gap == size).any()
        assert np.array_equal((null.gap == size).sum(2), (table.gap == size).sum(2))
    assert (null.previous != table.previous).mean() > 0.05
    weak = table.feature[:, :, options.top_k :] >= 0
    assert weak.any()
    assert (null.gap[:, :, options.top_k :][weak] > 0).all()
    for row in range(len(table.feature)):
        sources = [
            (layer - null.gap[row, layer, slot], null.previous[row, layer, slot])
            for layer, slot in zip(*np.nonzero(null.gap[row]), strict=True)
        ]
        assert len(sources) == len(set(sources))
        assert all(table.feature[row, layer, slot] >= 0 for layer, slot in sources)
    assert np.array_equal((null.previous >= 0), (null.gap > 0))


def test_shuffled_layers_are_never_in_their_natural_order() -> None:
    for layers in range(2, 7):
        for seed in range(20):
            order = shuffled_order(layers, seed)
            assert sorted(order) == list(range(layers)) != order
    assert shuffled_order(1, 0) == [0]


class FakeStore:
    def __init__(self, values: np.ndarray, massive: np.ndarray) -> None:
        self.values, self.massive, self.rows = values.astype(np.float16), massive, len(values)

    def read(self, start: int, stop: int) -> Any:
        return self.values[start:stop]

    def release(self) -> None:
        self.released = True


def fake_run(folder: Path, rows: int = 50) -> tuple[list[FakeStore], list[Sae], list[Path]]:
    """Three layers with similar SAEs, and their neighbour files; row 4 of the second is massive."""
    generator = torch.Generator().manual_seed(1)
    base = torch.nn.functional.normalize(torch.randn(48, 12, generator=generator), dim=1)
    saes = []
    for _ in range(3):
        decoder = torch.nn.functional.normalize(
            base + 0.05 * torch.randn(48, 12, generator=generator), dim=1
        )
        saes.append(
            Sae(
                decoder.T.contiguous(),
                torch.zeros(48),
                decoder,
                torch.zeros(12),
                torch.full((48,), 0.5),
            )
        )
    values = torch.randn(rows, 12, generator=generator).numpy()
    massive = np.zeros((3, rows), bool)
    massive[1, 4] = True
    paths = [folder / f"layer_{layer:02d}.npz" for layer in (2, 4)]
    save(
        paths[0],
        [2, 4, 6],
        [compare(saes[0].W_dec, saes[at].W_dec, 8, 0.99, [at]) for at in (1, 2)],
    )
    save(paths[1], [4, 6], [compare(saes[1].W_dec, saes[2].W_dec, 8, 0.99, [3])])
    return [FakeStore(values * (1 + at), massive[at]) for at in range(3)], saes, paths


def run_variant(folder: Path, variant: str, name: str = "tracks") -> dict[str, Any]:
    stores, saes, paths = fake_run(folder)
    plan = track_run.plan_links(
        variant, [2, 4, 6], paths, saes, kind="cosine", count=8, quantile=0.99, seed=3
    )
    options = TrackerOptions(5, 2, 1, 0.2)
    about = track_run.track(
        stores, saes, [2, 4, 6], plan, options, variant, 3, folder / f"{name}.zarr"
    )
    files.write_json(folder / f"{name}.json", about)
    return about


def test_tracks_and_their_attributes_are_read_back(tmp_path: Path) -> None:
    about = run_variant(tmp_path, "default")
    reader = track_table.TrackReader(tmp_path / "tracks.zarr", tmp_path / "tracks.json")
    table = reader.read(0, reader.rows)
    assert (reader.layers, reader.variant, reader.top_k, reader.rows) == (
        [2, 4, 6],
        "default",
        5,
        50,
    )
    assert table.feature.shape == (50, 3, about["slots"])
    assert (table.feature[4] == -1).all()  # massive in one layer: no detections in any
    assert about["counts"]["tracked_tokens"] == 49
    assert (table.gap[:, 1] == 1).sum() / 49 > 3  # similar dictionaries: most detections continue
    strongest = table.activation[:, :, :5]
    assert reader.scale == pytest.approx(
        strongest.sum((0, 2)) / (strongest > 0).sum((0, 2)), rel=1e-5
    )
    assert about["counts"]["adjacent"] == (table.gap == 1).sum((0, 2)).tolist()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("runs")
    return {variant: run_variant(folder, variant, variant) for variant in track_run.VARIANTS}


@pytest.mark.parametrize("variant", ["default", "random", "shuffled"])
def test_the_same_seed_gives_the_same_bytes(
    variant: str, tmp_path: Path, runs: dict[str, dict[str, Any]]
) -> None:
    assert run_variant(tmp_path, variant) == runs[variant]  # contains a digest of every byte
    assert track_table.digest(tmp_path / "tracks.zarr") == runs[variant]["store_sha256"]


def test_variants_differ_as_documented(runs: dict[str, dict[str, Any]]) -> None:
    linked = {variant: sum(each["counts"]["adjacent"]) for variant, each in runs.items()}
    assert linked["untracked"] == 0
    assert linked["permuted"] < 0.2 * linked["default"]
    assert linked["random"] == linked["default"]
    assert linked["shuffled"] > 0.5 * linked["default"]  # similar in any order of layers
    assert runs["shuffled"]["layers"] != [2, 4, 6]
    assert runs["untracked"]["counts"]["second_association"] == [0, 0, 0]
    assert runs["untracked"]["activation_scale"] == runs["default"]["activation_scale"]


def test_a_missing_chunk_is_refused(tmp_path: Path) -> None:
    run_variant(tmp_path, "default")
    (tmp_path / "tracks.zarr" / "feature" / "c" / "0" / "0" / "0").unlink()
    with pytest.raises(UserError, match="files are missing or changed: delete both"):
        track_table.TrackReader(tmp_path / "tracks.zarr", tmp_path / "tracks.json")


def test_neighbours_of_other_layers_are_refused(tmp_path: Path) -> None:
    _, saes, paths = fake_run(tmp_path)
    with pytest.raises(
        UserError, match=r"links layers \[2, 4, 6\] with 48 features, expected \[2, 4, 8\] with 48"
    ):
        track_run.plan_links(
            "default", [2, 4, 8], paths, saes, kind="cosine", count=8, quantile=0.99, seed=3
        )


def test_a_single_layer_is_tracked_without_links(tmp_path: Path) -> None:
    stores, saes, _ = fake_run(tmp_path)
    for variant in track_run.VARIANTS:
        plan = track_run.plan_links(
            variant, [2], [], saes[:1], kind="cosine", count=8, quantile=0.99, seed=3
        )
        about = track_run.track(
            stores[:1],
            saes[:1],
            [2],
            plan,
            TrackerOptions(5, 2, 1, 0.2),
            variant,
            3,
            tmp_path / variant,
        )
        assert about["counts"]["adjacent"] == [0]
        assert about["counts"]["births"] == about["counts"]["detections"]


def test_the_scripts_go_from_stores_and_autoencoders_to_tracks(tmp_path: Path) -> None:
    stores, saes, _ = fake_run(tmp_path)
    layers = [2, 4, 6]
    paths: dict[str, list[Path]] = {"stores": [], "manifests": [], "weights": [], "neighbours": []}
    for layer, fake, model in zip(layers, stores, saes, strict=True):
        name, folder = f"layer_{layer:02d}", tmp_path / f"saes/layer_{layer:02d}"
        paths["stores"].append(tmp_path / f"{name}.zarr")
        paths["manifests"].append(tmp_path / f"{name}.json")
        paths["weights"].append(folder / "sae_weights.safetensors")
        header = Header("tiny", "0" * 64, layer, "resid_post", None, "1" * 64)
        with StoreWriter(
            paths["stores"][-1], paths["manifests"][-1], header, rows=fake.rows, d_model=12
        ) as out:
            out.append(to_block(fake.values.astype(np.float32)))
        save_sae(
            model, paths["weights"][-1], folder / "cfg.json", hook_name=name, model_name="tiny"
        )
    settings = TrackingSettings.model_validate(
        {"top_k": 5, "second_association": 2, "neighbours": 8, "gate_quantile": 0.99}
    )
    for position, layer in enumerate(layers[:-1]):
        paths["neighbours"].append(tmp_path / f"found_{layer:02d}.npz")
        find_neighbours.main(
            stores=[],
            manifests=[],
            weights=paths["weights"][position : position + 3],
            neighbours=paths["neighbours"][-1],
            layer=layer,
            tracking=settings,
            seed=0,
            threads=1,
        )
    track_features.main(
        **paths,
        tracks=[tmp_path / "t.zarr", tmp_path / "u.zarr"],
        layers=layers,
        errors=tmp_path / "errors.parquet",
        tracks_manifests=[tmp_path / "t.json", tmp_path / "u.json"],
        tracking=settings,
        variants=["default", "shuffled"],
        seed=0,
        threads=1,
    )
    assert track_table.TrackReader(tmp_path / "u.zarr", tmp_path / "u.json").variant == "shuffled"
    errors = pd.read_parquet(tmp_path / "errors.parquet")
    assert list(errors) == [f"layer_{layer:02d}" for layer in layers]
    assert len(errors) == 50
    reader = track_table.TrackReader(tmp_path / "t.zarr", tmp_path / "t.json")
    assert (reader.layers, reader.rows) == (layers, 50)
    about = files.read_json(tmp_path / "t.json")
    assert sum(about["counts"]["adjacent"]) > 200
    assert {kind: len(digests) for kind, digests in about["inputs_sha256"].items()} == {
        "manifests": 3,
        "weights": 3,
        "neighbours": 2,
    }
    attributes = files.read_json(tmp_path / "t.zarr" / "zarr.json")["attributes"]
    assert (attributes["layers"], attributes["variant"], attributes["top_k"]) == (
        layers,
        "default",
        5,
    )
    threads = torch.get_num_threads()
    try:  # the number of threads does not change the tracks
        track_features.main(
            **paths,
            tracks=[tmp_path / "v.zarr"],
            layers=layers,
            errors=tmp_path / "again.parquet",
            tracks_manifests=[tmp_path / "v.json"],
            tracking=settings,
            variants=["default"],
            seed=0,
            threads=2,
        )
    finally:
        torch.set_num_threads(threads)
    assert files.read_json(tmp_path / "v.json") == about

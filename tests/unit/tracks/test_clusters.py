"""Semantic clusters: planted ones are found and labelled; links are counted on text."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sae_fakes import MemoryRows
from scipy import sparse

from ghosttrack.activations.store import Header, to_block
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.errors import UserError
from ghosttrack.sae import Sae
from ghosttrack.sae.model import save as save_sae
from ghosttrack.settings import TrackingSettings
from ghosttrack.tracks import cluster_labels, cluster_run, clusters, coactivation
from ghosttrack.tracks.clusters import FeatureEdges, assign, communities, graph, lookup
from ghosttrack.tracks.coactivation import CoactivePairs, compare_firing, firing, mutual
from ghosttrack.tracks.neighbours import Links, compare
from ghosttrack.tracks.neighbours import save as save_neighbours
from track import cluster_features


def planted(
    groups: int, size: int, layers: int, seed: int = 0
) -> tuple[list[FeatureEdges], list[int], np.ndarray]:
    """Groups of `size` features per layer, with many links within groups and few between."""
    rng = np.random.default_rng(seed)
    names = np.stack([rng.permutation(np.repeat(np.arange(groups), size)) for _ in range(layers)])
    edges = []
    for layer in range(layers - 1):
        same = names[layer][:, None] == names[layer + 1]
        chosen = (rng.random(same.shape) < np.where(same, 0.7, 0.005)).nonzero()
        edges.append(
            FeatureEdges(layer, layer + 1, chosen[0], chosen[1], rng.random(len(chosen[0])) + 0.1)
        )
    return edges, [groups * size] * layers, names


def test_planted_clusters_are_found_in_all_layers_and_reproducible() -> None:
    edges, sizes, names = planted(groups=12, size=6, layers=4)
    resolution = clusters.RESOLUTION_NODES / sum(sizes)  # 1 for the whole graph
    table = assign([3, 5, 7, 9], sizes, graph(sizes, edges), resolution)
    assert table.groupby("cluster")["layer"].nunique().tolist() == [4] * 12
    truth = pd.Series(names.reshape(-1))
    assert truth.groupby(table["cluster"]).nunique().tolist() == [1] * 12
    assert (table["inside"] > 0.5).all()
    assert table["layer"].unique().tolist() == [3, 5, 7, 9]
    again = assign([3, 5, 7, 9], sizes, graph(sizes, edges), resolution)
    pd.testing.assert_frame_equal(table, again)
    looked_up = lookup(table, [9, 3])
    assert looked_up[0].tolist() == table["cluster"].tolist()[-72:]
    assert looked_up[1].tolist() == table["cluster"].tolist()[:72]


def test_isolated_features_are_alone_and_clusters_are_numbered_by_size() -> None:
    pairs = [(1, 2), (2, 3), (1, 3), (4, 5)]
    source, target = np.array(pairs, np.int64).T
    edges = FeatureEdges(0, 0, source, target, np.ones(4))
    table = assign([0], [7], graph([7], [edges]), 1.0)
    assert table["cluster"].tolist() == [2, 0, 0, 0, 1, 1, 3]
    assert table["inside"].tolist() == [0, 1, 1, 1, 1, 1, 0]
    assert communities(graph([3], []), 1.0).tolist() == [0, 1, 2]


def test_finer_resolution_gives_more_clusters() -> None:
    edges, sizes, _ = planted(groups=12, size=6, layers=4)
    adjacency = graph(sizes, edges)
    counts = [
        len(set(communities(adjacency, resolution).tolist())) for resolution in (5.0, 35.0, 2000.0)
    ]
    assert counts[0] < counts[1] < counts[2]


def test_weights_of_a_repeated_edge_add_up_in_both_directions() -> None:
    one = FeatureEdges(0, 1, np.array([0, 0]), np.array([1, 1]), np.array([0.25, 0.5]))
    assert graph([2, 2], [one]).toarray().tolist() == [
        [0, 0, 0, 0.75],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
        [0.75, 0, 0, 0],
    ]


def test_a_table_that_lacks_features_is_refused() -> None:
    table = pd.DataFrame({"layer": [1, 1], "feature": [0, 2], "cluster": [0, 0]})
    with pytest.raises(UserError, match="its 2 features of layer 1 are not complete"):
        lookup(table, [1])


def dictionary(*features: dict[str, Any]) -> pd.DataFrame:
    nothing: dict[str, Any] = {"density": 0.0, "activation_max": 0.0}
    nothing |= {name: [] for name in cluster_labels.DICTIONARY if name not in nothing}
    return pd.DataFrame([nothing | feature for feature in features])


def about(
    text: str, share: float, row: int, activation: float = 2.0, most: float = 4.0
) -> dict[str, Any]:
    return {
        "density": 0.5,
        "activation_max": most,
        "top_text": [text, " of"],
        "top_share": [share, 0.01],
        "context_row": [row],
        "context_activation": [activation],
        "context_before": [f"before {row}"],
        "context_token": [text],
        "context_after": [f"after {row}"],
    }


def test_the_label_of_a_cluster_has_its_tokens_and_shared_contexts() -> None:
    table = pd.DataFrame({"layer": [1, 1, 2, 2], "feature": [0, 1, 0, 1], "cluster": [0, 1, 0, 2]})
    described = cluster_labels.describe(
        table,
        {
            1: dictionary(about(" Paris", 0.5, 7), about("\n", 0.9, 8)),
            2: dictionary(about("Paris", 0.3, 7, 3.0) | {"density": 0.25}, {}),
        },
    )
    first, second, silent = described.to_dict("records")
    assert (first["features"], first["layers"], first["first_layer"], first["last_layer"]) == (
        2,
        2,
        1,
        2,
    )
    assert first["density"] == 0.375
    assert first["top_text"] == [" Paris", "Paris", " of"]
    assert first["top_share"] == pytest.approx([0.25, 0.15, 0.01])
    assert first["label"] == "Paris / of"
    assert first["context_row"] == [7]
    assert first["context_share"] == pytest.approx([(0.5 + 0.75) / 2])
    assert (first["context_before"], first["context_after"]) == (["before 7"], ["after 7"])
    assert second["label"] == "\\n / of"
    assert (silent["label"], silent["top_text"], silent["context_row"]) == ("", [], [])


def test_links_are_counted_on_the_rows_where_both_ends_fire() -> None:
    rng = np.random.default_rng(0)
    active = rng.random((400, 30)) < 0.2
    lower = sparse.csr_array(active.astype(np.float32))
    order = rng.permutation(30)
    upper = sparse.csr_array((active[:, order] ^ (rng.random((400, 30)) < 0.01)).astype(np.float32))
    position = np.argsort(order)  # index of each lower feature in the upper layer
    links = Links(np.arange(31), position.astype(np.int32), np.ones(30, np.float32))
    permuted = Links(np.minimum(np.arange(31), 1), np.array([5], np.int32), np.ones(1, np.float32))
    result = compare_firing(lower, upper, links, permuted, 0.999, np.random.default_rng(1))
    both = [
        (active[:, one] & (upper.toarray()[:, other] > 0)).sum()
        for one, other in enumerate(position)
    ]
    tokens = int(active.any(1).sum())
    assert result.firings.tokens == tokens
    assert (result.firings.links, result.firings.permuted_links) == (30, 1)
    assert result.firings.links_per_token == pytest.approx(sum(both) / tokens)
    assert result.firings.permuted_links_per_token == pytest.approx(
        (active[:, 0] & (upper.toarray()[:, 5] > 0)).sum() / tokens
    )
    assert result.firings.next_fires == pytest.approx(sum(both) / active.sum())
    assert result.firings.next_fires_shuffled_links < 0.3
    # Each feature's copy is its best partner; shuffled rows set a gate below it.
    pairs = set(zip(result.pairs.lower.tolist(), result.pairs.upper.tolist(), strict=True))
    assert pairs >= set(enumerate(position.tolist()))
    assert len(pairs) < 30 + 5
    assert result.pairs.similarity.min() > result.gate > 0.2


def test_features_with_few_firings_have_no_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    active = np.zeros((100, 4), np.float32)
    active[: coactivation.MIN_FIRINGS - 1, 0] = 1
    active[:50, 1] = 1
    rows = sparse.csr_array(active)
    none = Links(np.zeros(5, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    for block in (1, 3, 1024):
        monkeypatch.setattr(coactivation, "_BLOCK", block)
        result = compare_firing(rows, rows, none, none, 0.999, np.random.default_rng(0))
        assert (result.pairs.lower.tolist(), result.pairs.upper.tolist()) == ([1], [1])
        assert result.firings.next_fires == result.firings.links_per_token == 0


def test_only_mutually_best_pairs_stay() -> None:
    pairs = CoactivePairs(
        np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 0]), np.array([0.9, 0.5, 0.8, 0.4, 0.7])
    )
    best = mutual(pairs, 1)
    assert (best.lower.tolist(), best.upper.tolist()) == ([0], [0])
    assert mutual(pairs, 2).similarity.tolist() == [0.9, 0.5, 0.8, 0.4]


def test_firing_follows_the_codes_and_excluded_rows_are_empty() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((9000, 6)).astype(np.float16).astype(np.float32)
    excluded = rng.random(9000) < 0.1
    sae = Sae(torch.eye(6), torch.zeros(6), torch.eye(6), torch.zeros(6), torch.full((6,), 0.5))
    active = firing(sae, MemoryRows(values, excluded))
    assert (active.toarray() > 0).tolist() == ((values > 0.5) & ~excluded[:, None]).tolist()
    assert firing(sae, MemoryRows(values, excluded), at_most=4096).shape == (4096, 6)


def run(folder: Path, name: str, seed: int = 0, **settings: Any) -> dict[str, Path]:
    """Run the script on three layers of 24 features from 12 directions, permuted between layers."""
    rng = np.random.default_rng(3)
    layers, directions = (
        [2, 4, 6],
        np.linalg.qr(rng.standard_normal((12, 12)))[0].astype(np.float32),
    )
    values = (
        np.abs(rng.standard_normal((300, 12))).astype(np.float32)
        * (rng.random((300, 12)) < 0.2)
        @ directions
    )
    files: dict[str, list[Path]] = {"stores": [], "manifests": [], "weights": [], "features": []}
    decoders: list[torch.Tensor] = []
    for layer in layers:
        rows = np.repeat(directions, 2, axis=0)[rng.permutation(24)]
        decoder = torch.from_numpy(rows + 0.05 * rng.standard_normal((24, 12)).astype(np.float32))
        target, manifest = folder / f"{layer}.zarr", folder / f"{layer}.json"
        if not target.exists():
            header = Header("m", "w", layer, "resid_post", 10, "t")
            with StoreWriter(target, manifest, header, rows=300, d_model=12) as writer:
                writer.append(to_block(values))
        position = folder / f"layer_{layer:02d}"
        position.mkdir(exist_ok=True)
        paths = [position / each for each in ("sae_weights.safetensors", "cfg.json")]
        threshold = torch.full((24,), 0.3)
        save_sae(
            Sae(decoder.T.clone(), torch.zeros(24), decoder.clone(), torch.zeros(12), threshold),
            *paths,
            hook_name="h",
            model_name="m",
        )
        table = dictionary(*(about(f" word{number}", 0.5, number) for number in range(24)))
        table.to_parquet(position / "features.parquet")
        decoders.append(decoder)
        for paths_of_kind, path in zip(
            files.values(), (target, manifest, paths[0], position / "features.parquet"), strict=True
        ):
            paths_of_kind.append(path)
    neighbours: list[Path] = []
    for first in range(2):
        compared = [
            compare(decoders[first], upper, 8, 0.99, [0, first]) for upper in decoders[first + 1 :]
        ]
        neighbours.append(folder / f"neighbours_{first}.npz")
        save_neighbours(neighbours[-1], layers[first : first + 3], compared)
    made = {key: folder / f"{name}_{key}" for key in ("table", "labels", "links")}
    cluster_features.main(
        neighbours=neighbours,
        **files,
        table=made["table"],
        labels=made["labels"],
        links=made["links"],
        layers=layers,
        tracking=TrackingSettings(**settings),
        seed=seed,
        threads=1,
    )
    return made


def test_the_script_clusters_permuted_copies_and_is_deterministic(tmp_path: Path) -> None:
    resolution = clusters.RESOLUTION_NODES / 72
    one, two = (
        run(tmp_path, name, cluster_resolution=resolution, gate_quantile=0.99) for name in "ab"
    )
    for key in one:
        assert one[key].read_bytes() == two[key].read_bytes()
    table = pd.read_parquet(one["table"])
    assert list(table) == list(clusters.COLUMNS)
    assert table.groupby("layer")["feature"].apply(list).tolist() == [list(range(24))] * 3
    assert table["cluster"].nunique() == 12
    assert table.groupby("cluster")["layer"].nunique().tolist() == [3] * 12
    labels = pd.read_parquet(one["labels"])
    assert labels["cluster"].tolist() == list(range(12))
    assert labels["features"].sum() == 72
    assert labels["label"].str.startswith("word").all()
    links = pd.read_csv(one["links"])
    assert links[["layer", "next_layer"]].to_numpy().tolist() == [[2, 4], [4, 6]]
    assert (links["links_per_token"] > 5 * links["permuted_links_per_token"]).all()
    assert (links["next_fires"] > 2 * links["next_fires_shuffled_links"]).all()


def test_with_one_layer_there_are_no_links_and_every_feature_is_alone() -> None:
    store = MemoryRows(np.ones((40, 2), np.float32), np.zeros(40, bool))
    sae = Sae(
        torch.ones(2, 24), torch.zeros(24), torch.ones(24, 2), torch.zeros(2), torch.zeros(24)
    )
    joined = cluster_run.join_layers(
        [3], [store], [sae], [], quantile=0.99, coactivation=0.5, seed=0
    )
    assert (joined.sizes, joined.edges, len(joined.links)) == ([24], [], 0)
    assert assign([3], joined.sizes, graph(joined.sizes, joined.edges), 25.0)[
        "cluster"
    ].tolist() == list(range(24))


def test_neighbours_of_other_layers_are_refused(tmp_path: Path) -> None:
    run(tmp_path, "a", gate_quantile=0.99)
    wrong = tmp_path / "neighbours_1.npz"
    stored = dict(np.load(wrong))
    stored["layers"] = np.array([2, 6], np.int32)
    np.savez(wrong, **stored)
    with pytest.raises(
        UserError,
        match=r"neighbours_1\.npz: links layers \[2, 6\] with 24 features, expected \[4, 6\]",
    ):
        cluster_run.join_layers(
            [2, 4, 6],
            [MemoryRows(np.ones((40, 2), np.float32), np.zeros(40, bool))] * 3,
            [
                Sae(
                    torch.ones(2, 24),
                    torch.zeros(24),
                    torch.ones(24, 2),
                    torch.zeros(2),
                    torch.zeros(24),
                )
            ]
            * 3,
            [tmp_path / "neighbours_0.npz", wrong],
            quantile=0.99,
            coactivation=0.5,
            seed=0,
        )

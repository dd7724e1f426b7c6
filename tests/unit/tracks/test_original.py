"""The original's association: hand-worked cases, a slow reference, and the script in this mode."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from ghosttrack.activations.store import Header, to_block
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.runtime import files
from ghosttrack.sae import Sae
from ghosttrack.sae.model import save as save_sae
from ghosttrack.settings import OriginalTrackingSettings, TrackingSettings
from ghosttrack.tracks import track_run, track_table
from ghosttrack.tracks.original import OriginalPlan
from ghosttrack.tracks.track_table import TrackTable
from ghosttrack.tracks.tracking import Detections, TrackerOptions, detect
from track import track_features

OPTIONS = TrackerOptions(top_k=3, second_association=1, coast=0, activation_weight=0.2)
COSTS = OriginalTrackingSettings()


def one_row(*pairs: tuple[int, float]) -> Detections:
    return Detections(
        np.array([[feature for feature, _ in pairs]], np.int32),
        np.array([[activation for _, activation in pairs]], np.float32),
    )


def at_angles(*cosines: float) -> torch.Tensor:
    """Unit rows in a plane with these cosines to the first axis."""
    return torch.tensor(
        [[cosine, (1 - cosine**2) ** 0.5] for cosine in cosines], dtype=torch.float32
    )


def followed(layers: list[Detections], decoders: list[torch.Tensor], **costs: float) -> TrackTable:
    plan = OriginalPlan(list(range(len(layers))), decoders, COSTS.model_copy(update=costs))
    return plan.follow(layers, OPTIONS).table


def test_the_cost_has_a_part_of_direction_and_one_of_activation() -> None:
    # .6 * (1 - .9) + .2 * (3 - 1) / (3 + 1) = .16: .34 below the threshold .5
    table = followed([one_row((0, 3.0)), one_row((0, 1.0))], [at_angles(1.0), at_angles(0.9)])
    assert table.gap[0, :, 0].tolist() == [0, 1]
    assert table.surplus[0, 1, 0] == pytest.approx(0.34, abs=1e-6)


@pytest.mark.parametrize(
    ("cosine", "after", "linked"),
    # At equal activations a cosine above 1/6 links; if the activation almost vanishes, above 1/2.
    [(0.17, 1.0, True), (0.16, 1.0, False), (0.51, 1e-5, True), (0.49, 1e-5, False)],
)
def test_a_link_needs_a_cost_below_the_threshold(cosine: float, after: float, linked: bool) -> None:
    table = followed([one_row((0, 1.0)), one_row((0, after))], [at_angles(1.0), at_angles(cosine)])
    assert (table.gap[0, 1, 0] == 1) == linked


def test_the_change_from_almost_zero_is_0_or_1() -> None:
    # The birth threshold of the first layer has to admit a vanishing activation.
    for after, left in ((0.2, 0.3), (0.05, 0.5)):
        table = followed(
            [one_row((0, 1e-7)), one_row((0, after))], [at_angles(1.0), at_angles(1.0)], birth=0.0
        )
        assert table.surplus[0, 1, 0] == pytest.approx(left, abs=1e-6)


def test_the_optimum_comes_first_and_the_threshold_afterwards() -> None:
    # Costs .6 (1 - cosine): a-c .1, a-d .45, b-c .2, b-d 1.15. Crossed, they sum to .65, straight
    # to 1.25: crossed wins. Yet a-c is the best link, and an optimum over costs below .5 would take
    # it alone (surplus .4 against .05 + .3).
    angles = np.arccos(1 - np.array([0.0, 0.1, 0.45, 0.2]) / 0.6)
    a, c, d, b = angles[0], angles[1], -angles[2], angles[1] + angles[3]
    lower, upper = (
        torch.tensor(np.stack([np.cos(pair), np.sin(pair)], 1), dtype=torch.float32)
        for pair in (np.array([a, b]), np.array([c, d]))
    )
    table = followed([one_row((0, 1.0), (1, 1.0))] * 2, [lower, upper])
    assert table.previous[0, 1, :2].tolist() == [1, 0]
    assert table.surplus[0, 1, :2] == pytest.approx([0.3, 0.05], abs=1e-5)


def test_a_track_without_a_link_ends_at_once() -> None:
    directions = at_angles(1.0, 0.0)
    table = followed([one_row((0, 1.0)), one_row((1, 1.0)), one_row((0, 1.0))], [directions] * 3)
    assert table.gap[0, :, 0].tolist() == [0, 0, 0]


def test_weak_detections_continue_tracks_but_start_none() -> None:
    directions = at_angles(1.0, 0.0)
    layers = [
        one_row((0, 1.0), (1, 0.4)),
        one_row((0, 0.45), (1, 0.4)),
        one_row((1, 0.51), (0, 0.4)),
    ]
    table = followed(layers, [directions] * 3)
    assert table.feature[0].tolist() == [[0, -1], [0, -1], [1, 0]]
    assert table.gap[0].tolist() == [[0, 0], [1, 0], [0, 1]]
    assert table.previous[0].tolist() == [[-1, -1], [0, -1], [-1, 0]]


def slowly(
    codes: list[np.ndarray], decoders: list[np.ndarray], token: int
) -> list[list[tuple[int, int]]]:
    """One token, cell by cell: per layer (feature, feature it continues or -1), strongest first."""
    alive: list[tuple[int, float]] = []
    layers = []
    for position, code in enumerate(codes):
        order = sorted(np.flatnonzero(code[token] > 0), key=lambda at: (-code[token, at], at))[
            : OPTIONS.top_k
        ]
        detections = [(int(feature), float(code[token, feature])) for feature in order]
        parents: dict[int, int] = {}
        if alive and detections:
            cost = np.empty((len(alive), len(detections)))
            for i, (one, a) in enumerate(alive):
                for j, (other, b) in enumerate(detections):
                    cosine = float(decoders[position - 1][one] @ decoders[position][other])
                    cost[i, j] = 0.6 * (1 - cosine) + 0.2 * abs(a - b) / (a + b)
            parents = {
                int(j): int(i)
                for i, j in zip(*linear_sum_assignment(cost), strict=True)
                if cost[i, j] < 0.5
            }
        kept = [
            j for j, (_, activation) in enumerate(detections) if j in parents or activation > 0.5
        ]
        layers.append(
            [(detections[j][0], alive[parents[j]][0] if j in parents else -1) for j in kept]
        )
        alive = [detections[j] for j in kept]
    return layers


def test_all_tokens_at_once_equal_one_after_the_other() -> None:
    generator = np.random.default_rng(0)
    decoders = [
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for rows in generator.standard_normal((4, 20, 6))
    ]
    codes = [
        (generator.random((300, 20)) < 0.2)
        * generator.lognormal(0, 1, (300, 20)).astype(np.float32)
        for _ in range(4)
    ]
    plan = OriginalPlan(
        [0, 1, 2, 3], [torch.tensor(each, dtype=torch.float32) for each in decoders], COSTS
    )
    result = plan.follow([detect(code.astype(np.float32), 3) for code in codes], OPTIONS)
    table = result.table
    links = 0
    for token in range(300):
        for layer, expected in enumerate(slowly(codes, decoders, token)):
            features = table.feature[token, layer]
            before = table.feature[token, layer - 1] if layer else features
            origin = [
                int(before[previous]) if previous >= 0 else -1
                for feature, previous in zip(features, table.previous[token, layer], strict=True)
                if feature >= 0
            ]
            assert list(zip(features[features >= 0].tolist(), origin, strict=True)) == expected
            links += sum(parent >= 0 for _, parent in expected)
    assert links > 300
    assert result.hard == result.candidates > links


def test_the_script_follows_the_original_by_its_settings(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(24, 8, generator=generator), dim=1)
    each = Sae(
        decoder.T.contiguous(), torch.zeros(24), decoder, torch.zeros(8), torch.full((24,), 0.3)
    )
    values = torch.randn(40, 8, generator=generator).numpy()
    stores, manifests, weights = [], [], []
    for layer in (0, 1):
        folder = tmp_path / f"layer_{layer:02d}"
        weights.append(folder / "sae_weights.safetensors")
        save_sae(each, weights[-1], folder / "cfg.json", hook_name="", model_name="tiny")
        stores.append(tmp_path / f"{layer}.zarr")
        manifests.append(tmp_path / f"{layer}.json")
        header = Header("tiny", "0" * 64, layer, "resid_post", None, "1" * 64)
        with StoreWriter(stores[-1], manifests[-1], header, rows=40, d_model=8) as out:
            out.append(to_block(values))
    tracking = TrackingSettings.model_validate({"mode": "original", "top_k": 5})
    assert (tracking.original.association, tracking.original.birth, TrackingSettings().top_k) == (
        0.5,
        0.5,
        50,
    )
    variants = list(track_run.VARIANTS)
    tracks = [tmp_path / f"{name}.tracks.zarr" for name in variants]
    told = [tmp_path / f"{name}.tracks.json" for name in variants]
    track_features.main(
        stores=stores,
        manifests=manifests,
        weights=weights,
        neighbours=[],
        layers=[0, 1],
        tracks=tracks,
        tracks_manifests=told,
        errors=tmp_path / "errors.parquet",
        tracking=tracking,
        variants=variants,
        seed=0,
        threads=1,
    )
    about = {name: files.read_json(path) for name, path in zip(variants, told, strict=True)}
    linked = {name: sum(each["counts"]["adjacent"]) for name, each in about.items()}
    assert about["default"]["mode"] == "original"
    # The same layer twice: every track continues, and every link has cost 0.
    assert linked["default"] == about["default"]["counts"]["detections"][0]
    table = track_table.TrackReader(tracks[0], told[0]).read(0, 40)
    assert np.allclose(table.surplus[table.gap == 1], 0.5, atol=1e-5)
    assert linked["untracked"] == 0
    assert linked["permuted"] < linked["random"] == linked["default"]

"""Sweeps: each arm equals the dictionary that trains alone, batches are read once, and a kill
changes nothing.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sae_fakes import SMALL, MemoryBatches, MemoryRows, planted, train_one
from test_sae_scripts import arguments, write_store

from ghosttrack import sae
from ghosttrack.errors import UserError
from ghosttrack.sae.model import Sae
from ghosttrack.sae.stability import compare
from ghosttrack.sae.sweep import SweepArm, sweep
from ghosttrack.settings import SweepSettings
from sweep import draw_sweep, sweep_sae

STORE, _ = planted(rows=1024, d_model=16, features=32, active=3.0, seed=0)
ARMS = [SweepArm(3, 0), SweepArm(4, 0), SweepArm(4, 1)]


class Counted(MemoryBatches):
    """Counts how often a batch is read."""

    def __init__(self, store: MemoryRows, batch: int, fail_at: int | None = None) -> None:
        super().__init__(store, batch, fail_at)
        self.reads: list[int] = []

    def batch_at(self, step: int) -> torch.Tensor:
        self.reads.append(step)
        return super().batch_at(step)


def run(
    state: Path, batches: MemoryBatches, checkpoint_seconds: float = 60.0
) -> dict[SweepArm, Sae]:
    return sweep(
        STORE,
        batches,
        SMALL,
        ARMS,
        state=state,
        micro_batch=1024,
        order=0,
        checkpoint_seconds=checkpoint_seconds,
    )


def weights(found: Sae) -> bytes:
    return b"".join(
        t.numpy().tobytes()
        for t in (found.W_enc, found.b_enc, found.W_dec, found.b_dec, found.threshold)
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[SweepArm, Sae]:
    return run(tmp_path_factory.mktemp("state"), MemoryBatches(STORE, SMALL.batch))


def test_every_arm_is_bit_by_bit_what_training_it_alone_gives(
    undisturbed: dict[SweepArm, Sae], tmp_path: Path
) -> None:
    for arm, found in undisturbed.items():
        (tmp_path / arm.name).mkdir()
        alone = train_one(
            STORE,
            MemoryBatches(STORE, SMALL.batch),
            SMALL.model_copy(update={"k": arm.k}),
            seed=arm.seed,
            state=tmp_path / arm.name,
            micro_batch=1024,
        )
        assert weights(found) == weights(alone.sae), arm
        assert found.metadata == alone.sae.metadata
    assert len({weights(found) for found in undisturbed.values()}) == len(ARMS)


def test_each_batch_is_read_once_for_all_arms(tmp_path: Path) -> None:
    batches = Counted(STORE, SMALL.batch)
    run(tmp_path, batches)
    # The first is looked at beforehand, to set the scale of the encoders.
    assert batches.reads == [0, *range(SMALL.epochs * batches.batches_per_epoch)]


def test_killed_arms_stand_at_different_steps_and_end_in_the_same_bytes(
    undisturbed: dict[SweepArm, Sae], tmp_path: Path
) -> None:
    for step in (1, 20, 41):
        with pytest.raises(InterruptedError):
            run(
                tmp_path, MemoryBatches(STORE, SMALL.batch, fail_at=step), checkpoint_seconds=0.0
            )  # one arm saved a step
    checkpoints = {arm.name: max((tmp_path / arm.name).glob("*.checkpoint")).name for arm in ARMS}
    assert len(set(checkpoints.values())) == len(ARMS)
    resumed = Counted(STORE, SMALL.batch)
    found = run(tmp_path, resumed)
    assert resumed.reads[0] > 30
    for arm in ARMS:
        assert weights(found[arm]) == weights(undisturbed[arm]), arm


def test_checkpoints_of_another_order_of_the_rows_are_not_gone_on_from(tmp_path: Path) -> None:
    batches = MemoryBatches(STORE, SMALL.batch, fail_at=20)
    with pytest.raises(InterruptedError):
        sweep(
            STORE,
            batches,
            SMALL,
            ARMS,
            state=tmp_path,
            micro_batch=1024,
            order=0,
            checkpoint_seconds=0.0,
        )
    other = Counted(STORE, SMALL.batch)
    sweep(STORE, other, SMALL, ARMS, state=tmp_path, micro_batch=1024, order=5)
    assert other.reads[:2] == [0, 0]


def test_decoders_without_a_firing_feature_share_nothing() -> None:
    found = compare(torch.zeros(0, 8), torch.randn(3, 8), seed=0)
    assert found.features == 0
    assert np.isnan(found[1:]).all()


def test_an_impossible_k_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sweep\.k: 48 active of sae\.d_sae: 48"):
        sweep(
            STORE,
            MemoryBatches(STORE, 64),
            SMALL,
            [SweepArm(4, 0), SweepArm(48, 0)],
            state=tmp_path,
            micro_batch=64,
            order=0,
        )


def test_features_that_two_decoders_share_are_found_whatever_their_order() -> None:
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(120, 64, generator=generator)
    other = torch.randn(120, 64, generator=generator)
    other[:30] = 3.0 * one[:30]
    other[30:60] = one[30:60] + 0.85 * one[30:60].norm(dim=1, keepdim=True) / 8 * torch.randn(
        30, 64, generator=generator
    )
    found = compare(one, other[torch.randperm(120, generator=generator)], seed=0)
    assert found.features == 120
    assert found.share_equal == pytest.approx(0.25)
    assert (
        0.4 < found.share_alike <= 0.5
    )  # cosine of the second thirty: about 1 / sqrt(1 + .85^2) = .76
    assert 0.5 <= found.mutual < 1.0
    assert found.chance_median < 0.35
    same = compare(one, one, seed=0)
    assert (same.share_equal, same.mutual) == (1.0, 1.0)
    assert same.paired_median == pytest.approx(1.0)
    assert compare(one, one[:50], seed=0).features == 50


def test_the_scripts_write_an_autoencoder_an_arm_and_the_tables_and_the_figure(
    tmp_path: Path,
) -> None:
    store, manifest = write_store(tmp_path, "train", seed=0)
    heldout, heldout_manifest = write_store(tmp_path, "heldout", seed=1)
    given = arguments(tmp_path, store, manifest)
    for name in ("weights", "cfg", "history", "training_digest", "warm_start_layer", "resident_mb"):
        del given[name]
    settings = SweepSettings(k=[3, 5], seeds=[0, 1])
    for name in ("one", "two"):
        out = tmp_path / name
        sweep_sae.main(
            **given,
            heldout=heldout,
            heldout_manifest=heldout_manifest,
            saes=out / "saes",
            arms=out / "arms.csv",
            stability=out / "stability.csv",
            sweep_settings=settings,
        )
        assert not (tmp_path / "state").exists()
    arms, stability = (
        pd.read_csv(tmp_path / "one" / name) for name in ("arms.csv", "stability.csv")
    )
    assert arms[["k", "seed"]].to_numpy().tolist() == [[3, 0], [3, 1], [5, 0], [5, 1]]
    means = arms.groupby("k")[["l0", "fvu", "pca_fvu"]].mean()
    assert means["fvu"][5] < means["fvu"][3]
    assert means["pca_fvu"][5] < means["pca_fvu"][3]
    assert stability[["layer", "k", "seed", "other_seed"]].to_numpy().tolist() == [
        [2, 3, 0, 1],
        [2, 5, 0, 1],
    ]
    assert (stability["paired_median"] > stability["chance_median"]).all()
    folders = sorted(path.name for path in (tmp_path / "one" / "saes").iterdir())
    assert folders == ["k_003_seed_0", "k_003_seed_1", "k_005_seed_0", "k_005_seed_1"]
    loaded = sae.load(tmp_path / "one" / "saes" / "k_003_seed_1")
    assert (loaded.metadata["k"], loaded.metadata["seed"], loaded.metadata["hook_name"]) == (
        3,
        1,
        "blocks.2.hook_resid_post",
    )
    for path in (tmp_path / "one").rglob("*.*"):
        if path.is_file():
            assert (
                path.read_bytes()
                == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
            ), path
    figures = [tmp_path / f"sweep.{form}" for form in ("png", "pdf", "svg")]
    draw_sweep.main(
        arms=[tmp_path / "one" / "arms.csv"],
        stability=[tmp_path / "one" / "stability.csv"],
        all_arms=tmp_path / "a.csv",
        all_stability=tmp_path / "s.csv",
        figures=figures,
    )
    assert all(path.stat().st_size > 1000 for path in figures)
    assert len(pd.read_csv(tmp_path / "a.csv")) == 4


def test_one_seed_leaves_a_table_without_pairs_that_can_be_drawn(tmp_path: Path) -> None:
    store, manifest = write_store(tmp_path, "train", seed=0)
    given = arguments(tmp_path, store, manifest)
    for name in ("weights", "cfg", "history", "training_digest", "warm_start_layer", "resident_mb"):
        del given[name]
    sweep_sae.main(
        **given,
        heldout=store,
        heldout_manifest=manifest,
        saes=tmp_path / "saes",
        arms=tmp_path / "arms.csv",
        stability=tmp_path / "stability.csv",
        sweep_settings=SweepSettings(k=[4], seeds=[7]),
    )
    assert (tmp_path / "stability.csv").read_text().startswith("layer,k,seed,other_seed,features,")
    assert pd.read_csv(tmp_path / "stability.csv").empty
    draw_sweep.main(
        arms=[tmp_path / "arms.csv"],
        stability=[tmp_path / "stability.csv"],
        all_arms=tmp_path / "a.csv",
        all_stability=tmp_path / "s.csv",
        figures=[tmp_path / "sweep.svg"],
    )
    assert (tmp_path / "sweep.svg").exists()

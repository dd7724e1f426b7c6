"""The sampler: every included row once per epoch, in the same order in all modes."""

import numpy as np
import numpy.typing as npt
import pytest
import torch

from ghosttrack.activations import sampler
from ghosttrack.activations.reader import ActivationStore
from ghosttrack.activations.sampler import ChunkSampler
from ghosttrack.activations.store import Header, to_block
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.errors import UserError

ROWS, CONTEXT, BATCH = 45_000, 50, 512


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    """Two stores with rows (row // 1000, row % 1000), exact in float16; incomplete chunks."""
    folder = tmp_path_factory.mktemp("store")
    rows = np.arange(ROWS)
    values = np.stack([rows // 1000 + 1, rows % 1000], axis=1).astype(np.float32)
    values[123] = 30_000, 30_000  # massive: a far larger norm than the rest
    header = Header("tiny", "weights", 0, "resid_post", CONTEXT, "tokens")
    cuts = [(0, 20_000), (20_000, ROWS)]
    for start, stop in cuts:
        paths = folder / f"{start}.zarr", folder / f"{start}.json"
        with StoreWriter(
            *paths, header, rows=stop - start, d_model=2, row_start=start, total_rows=ROWS
        ) as writer:
            writer.append(to_block(values[start:stop]))
    return ActivationStore.open(
        [folder / f"{cut[0]}.zarr" for cut in cuts], [folder / f"{cut[0]}.json" for cut in cuts]
    )


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "WINDOW_CHUNKS", 3)


def names(batch: torch.Tensor) -> npt.NDArray[np.int64]:
    return np.asarray((batch[:, 0] - 1) * 1000 + batch[:, 1], dtype=np.int64)


def epoch_rows(found: ChunkSampler, epoch: int) -> npt.NDArray[np.int64]:
    first = epoch * found.batches_per_epoch
    return np.concatenate(
        [names(found.batch_at(first + step)) for step in range(found.batches_per_epoch)]
    )


@pytest.mark.usefixtures("small_windows")
def test_an_epoch_serves_each_included_row_at_most_once_and_drops_only_the_last_batch(
    store: ActivationStore,
) -> None:
    found = ChunkSampler(store, BATCH, seed=0)
    assert found.rows == ROWS - ROWS // CONTEXT - 1
    assert found.batches_per_epoch == found.rows // BATCH
    rows = epoch_rows(found, 0)
    assert len(set(rows.tolist())) == len(rows) == found.batches_per_epoch * BATCH
    assert not store.excluded[rows].any()


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("batch", [1, 512, 7_000])
def test_resident_and_buffered_modes_give_the_same_order(
    store: ActivationStore, batch: int
) -> None:
    resident, buffered = (
        ChunkSampler(store, batch, seed=3, resident=mode) for mode in (True, False)
    )
    for step in [*range(5), resident.batches_per_epoch - 1, resident.batches_per_epoch]:
        np.testing.assert_array_equal(resident.batch_at(step), buffered.batch_at(step))


@pytest.mark.usefixtures("small_windows")
def test_any_step_can_be_requested_directly(store: ActivationStore) -> None:
    one = ChunkSampler(store, BATCH, seed=1, resident=False)
    in_order = [one.batch_at(step) for step in range(2 * one.batches_per_epoch)]
    for step in (130, 4, 90, 5, 0):
        np.testing.assert_array_equal(
            ChunkSampler(store, BATCH, seed=1).batch_at(step), in_order[step]
        )
        np.testing.assert_array_equal(one.batch_at(step), in_order[step])


def test_seed_and_epoch_both_change_the_order(store: ActivationStore) -> None:
    found = ChunkSampler(store, BATCH, seed=0)
    first, second, other = (
        epoch_rows(found, 0),
        epoch_rows(found, 1),
        epoch_rows(ChunkSampler(store, BATCH, seed=1), 0),
    )
    assert (first != second).mean() > 0.99
    assert (first != other).mean() > 0.99
    np.testing.assert_array_equal(first, epoch_rows(ChunkSampler(store, BATCH, seed=0), 0))


def test_batches_mix_rows_from_the_whole_window(store: ActivationStore) -> None:
    rows = names(ChunkSampler(store, 4_096, seed=0).batch_at(0))
    # Uniform over 45 blocks of 1,000 rows: about 91 each; clumping would leave blocks empty.
    assert np.bincount(rows // 1000, minlength=45).min() > 50
    assert abs(np.corrcoef(np.arange(len(rows)), rows)[0, 1]) < 0.06


def test_batches_are_float32_copies_that_may_be_changed(store: ActivationStore) -> None:
    found = ChunkSampler(store, BATCH, seed=0)
    batch = found.batch_at(0)
    assert batch.dtype == torch.float32
    before = batch.clone()
    batch += 1
    np.testing.assert_array_equal(found.batch_at(0), before)


def test_a_store_smaller_than_a_batch_is_refused_with_the_keys_to_change(
    store: ActivationStore,
) -> None:
    with pytest.raises(
        UserError, match=r"fewer than one batch of 50000: raise corpus\.tokens or lower sae\.batch"
    ):
        ChunkSampler(store, 50_000, seed=0)

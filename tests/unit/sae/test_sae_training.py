"""A whole run: what it learns, its schedule, and that a killed run ends in the same bytes."""

import logging
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from event_reader import points
from sae_fakes import SMALL, MemoryBatches, MemoryRows, planted, train_one

from ghosttrack.errors import UserError
from ghosttrack.sae import Sae, speed, training
from ghosttrack.sae.dense_step import DenseBackEnd
from ghosttrack.sae.quality import measure
from ghosttrack.sae.rows import blocks, fit_normaliser
from ghosttrack.sae.training import Schedule, TrainedSae, schedule
from ghosttrack.settings import SaeSettings

STORE, _ = planted(rows=1024, d_model=16, features=32, active=3.0, seed=0)


def run(
    state: Path,
    settings: SaeSettings = SMALL,
    *,
    seed: int = 0,
    fail_at: int | None = None,
    micro_batch: int = 1024,
    checkpoint_seconds: float = 0.0,
    events: Path | None = None,
) -> TrainedSae:
    if state != Path(os.devnull):
        state.mkdir(exist_ok=True)
    batches = MemoryBatches(STORE, settings.batch, fail_at)
    return train_one(
        STORE,
        batches,
        settings,
        seed=seed,
        state=state,
        micro_batch=micro_batch,
        checkpoint_seconds=checkpoint_seconds,
        events=events,
    )


def weight_bytes(trained: TrainedSae) -> bytes:
    sae = trained.sae
    return b"".join(
        t.numpy().tobytes() for t in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, sae.threshold)
    )


def test_planted_directions_are_found() -> None:
    store, directions = planted(rows=8192, d_model=32, features=48, active=2.5, seed=1)
    settings = SaeSettings(d_sae=96, k=3, batch=256, epochs=20, learning_rate=4e-3)
    state = Path(os.devnull)  # never written: no checkpoint falls due
    batches = MemoryBatches(store, 256)
    sae = train_one(
        store, batches, settings, seed=0, state=state, micro_batch=256, checkpoint_seconds=1e9
    ).sae
    rows = (sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)).numpy()
    best = (directions @ rows.T).max(axis=1)
    assert np.mean(best > 0.95) >= 0.9


KINDS: dict[str, SaeSettings] = {
    name: SaeSettings(architecture=name, d_sae=192, k=5, batch=256, epochs=10, learning_rate=3e-3)
    for name in ("batchtopk", "topk", "jumprelu", "matryoshka")
}


Recovered = dict[str, tuple[Sae, MemoryRows, float]]


@pytest.fixture(scope="module")
def recovered() -> Recovered:
    """By architecture: an SAE of planted directions, other rows, the fraction of recovered ones."""
    torch.set_num_threads(1)
    store, directions = planted(rows=26_000, d_model=64, features=128, active=4.0, seed=1)
    train_rows, other = MemoryRows(store.values[:24_000]), MemoryRows(store.values[24_000:])
    found = {}
    for name, settings in KINDS.items():
        batches = MemoryBatches(train_rows, settings.batch)
        nowhere = Path(
            os.devnull
        )  # never written: no checkpoint falls due, however busy the machine
        sae = train_one(
            train_rows,
            batches,
            settings,
            seed=0,
            state=nowhere,
            micro_batch=256,
            checkpoint_seconds=1e9,
        ).sae
        rows = (sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)).numpy()
        found[name] = sae, other, float(np.mean((directions @ rows.T).max(axis=1) > 0.95))
    return found


# Prefixes make the first features general, but all planted directions are equally general.
@pytest.mark.parametrize(
    ("name", "share"), [("batchtopk", 0.9), ("topk", 0.9), ("jumprelu", 0.9), ("matryoshka", 0.65)]
)
def test_each_architecture_recovers_a_planted_dictionary(
    name: str, share: float, recovered: Recovered
) -> None:
    assert recovered[name][2] >= share


def test_jumprelu_reaches_its_target_on_other_rows_and_reconstructs_as_batchtopk_does(
    recovered: Recovered,
) -> None:
    jumprelu, batchtopk = (measure(*recovered[name][:2], k=5) for name in ("jumprelu", "batchtopk"))
    assert jumprelu.sparsity.l0 == pytest.approx(5.0, rel=0.1)
    assert jumprelu.reconstruction.fvu < 1.05 * batchtopk.reconstruction.fvu
    assert len(set(recovered["jumprelu"][0].threshold.tolist())) > 100  # every feature has its own


def test_topk_keeps_k_features_on_each_row_of_other_text(recovered: Recovered) -> None:
    sae, other, _ = recovered["topk"]
    found = measure(sae, other, k=5).sparsity
    assert (found.l0_p5, found.l0_p50, found.l0_p95) == (5.0, 5.0, 5.0)


def test_every_prefix_of_matryoshka_reconstructs_better_than_the_same_features_of_batchtopk(
    recovered: Recovered,
) -> None:
    fvu = {}
    for name in ("matryoshka", "batchtopk"):
        sae, other, _ = recovered[name]
        x = next(blocks(other))
        code, spread = sae.encode(x), (x - x.mean(0)).pow(2).sum()
        parts = [
            replace(sae, W_dec=sae.W_dec * (torch.arange(192) < end).unsqueeze(1))
            for end in (6, 18, 42, 90)
        ]
        fvu[name] = [float((part.decode(code) - x).pow(2).sum() / spread) for part in parts]
    nested, flat = fvu["matryoshka"], fvu["batchtopk"]
    assert nested == sorted(nested, reverse=True)
    assert all(one < other - 0.01 for one, other in zip(nested, flat, strict=True))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("fail_at", [1, 30])
def test_each_architecture_resumes_in_the_same_bytes(
    name: str, fail_at: int, tmp_path: Path
) -> None:
    settings = SMALL.model_copy(update={"architecture": name, "dead_after": 0.02})
    whole = run(tmp_path / "whole", settings, checkpoint_seconds=3600.0)
    assert max(row.dead for row in whole.history) > 0  # AuxK takes part
    with pytest.raises(InterruptedError):
        run(tmp_path / "killed", settings, fail_at=fail_at)
    resumed = run(tmp_path / "killed", settings)
    assert weight_bytes(resumed) == weight_bytes(whole)
    assert resumed.history == whole.history


def curves(trained: TrainedSae) -> dict[str, list[tuple[int, float]]]:
    """What an event file should hold: every number of the history in single precision."""
    names = ("loss", "fvu", "l0", "dead", "learning_rate")
    return {
        name: [(row.step, float(np.float32(getattr(row, name)))) for row in trained.history]
        for name in names
    }


def test_the_event_file_is_the_history_and_changes_no_byte(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", checkpoint_seconds=3600.0)
    watched = run(tmp_path / "watched", checkpoint_seconds=3600.0, events=tmp_path / "events")
    assert weight_bytes(watched) == weight_bytes(plain)
    assert points(tmp_path / "events") == curves(plain)


@pytest.mark.parametrize("killed_at", [0, 1, 30])
def test_a_resumed_training_has_every_point_once(killed_at: int, tmp_path: Path) -> None:
    events, state = tmp_path / "events", tmp_path / "state"
    whole = run(tmp_path / "whole", checkpoint_seconds=3600.0)
    with pytest.raises(InterruptedError):
        run(state, fail_at=killed_at, events=events)
    assert run(state, events=events).history == whole.history
    assert points(events) == curves(whole)


def test_points_after_the_last_checkpoint_are_not_written_twice(tmp_path: Path) -> None:
    events, state = tmp_path / "events", tmp_path / "state"
    with pytest.raises(InterruptedError):
        run(state, fail_at=20, events=events)
    with pytest.raises(InterruptedError):  # 20 further steps, none of which is saved
        run(state, fail_at=40, checkpoint_seconds=3600.0, events=events)
    assert points(events)["loss"][-1][0] == 40
    whole = run(state, events=events)
    assert points(events) == curves(whole)


def test_the_setting_may_change_between_two_attempts(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", checkpoint_seconds=3600.0)
    with pytest.raises(InterruptedError):
        run(tmp_path / "state", fail_at=30)
    run(tmp_path / "state", events=tmp_path / "events")
    assert points(tmp_path / "events") == curves(whole)


@pytest.mark.parametrize("name", KINDS)
def test_the_dense_back_end_trains_to_the_same_quality(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SMALL.model_copy(update={"architecture": name})
    sparse = run(Path(os.devnull), settings, checkpoint_seconds=3600.0)
    monkeypatch.setattr(
        training, "back_end", lambda _, micro_batch, precision: DenseBackEnd(micro_batch, precision)
    )
    dense = run(Path(os.devnull), settings, checkpoint_seconds=3600.0)
    assert dense.history[-1].fvu == pytest.approx(sparse.history[-1].fvu, rel=0.05)
    assert dense.history[-1].l0 == pytest.approx(sparse.history[-1].l0, rel=0.05)


def test_the_log_says_how_near_the_steps_came_to_the_limit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, logger="ghosttrack")
    run(tmp_path)
    assert "GFLOP/s" not in caplog.text  # a second is too short to tell
    caplog.clear()
    shutil.rmtree(tmp_path)
    monkeypatch.setattr(training, "MIN_TIMED_SECONDS", 0.0)
    run(tmp_path)
    assert re.search(
        r"ms per step of 64 tokens, [\d,]+ tokens/s; .* of matrix products on this machine",
        caplog.text,
    )


def test_a_small_batch_on_a_gpu_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    speed.warn_of_small_batch(1024)
    assert not caplog.text
    speed.warn_of_small_batch(128)
    assert "sae.batch is 128" in caplog.text


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path: Path) -> None:
    first, again, other = (run(tmp_path / str(i), seed=seed) for i, seed in enumerate((0, 0, 1)))
    assert weight_bytes(first) == weight_bytes(again)
    assert first.history == again.history
    assert weight_bytes(first) != weight_bytes(other)


@pytest.mark.parametrize("fail_at", [1, 7, 16, 33, 47])
def test_a_run_killed_at_any_step_and_resumed_gives_the_same_bytes(
    fail_at: int, tmp_path: Path
) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        run(tmp_path / "killed", fail_at=fail_at)
    resumed = run(tmp_path / "killed")
    assert weight_bytes(resumed) == weight_bytes(whole)
    assert resumed.history == whole.history
    assert resumed.sae.metadata == whole.sae.metadata


def test_a_kill_between_two_lines_of_the_history_loses_none_of_it(tmp_path: Path) -> None:
    settings = SMALL.model_copy(update={"epochs": 26})  # 416 steps: a line every second
    whole = run(tmp_path / "whole", settings, checkpoint_seconds=3600.0)
    for fail_at in (1, 30, 31):
        with pytest.raises(InterruptedError):
            run(tmp_path / "killed", settings, fail_at=fail_at)
    resumed = run(tmp_path / "killed", settings, checkpoint_seconds=3600.0)
    assert resumed.history == whole.history
    assert weight_bytes(resumed) == weight_bytes(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_leaves_with_the_shell_status(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole")
    (tmp_path / "stopped").mkdir()
    batches = MemoryBatches(STORE, SMALL.batch)
    serve = batches.batch_at

    def serve_and_signal(step: int) -> torch.Tensor:
        if step == 10:
            os.kill(os.getpid(), number)
        return serve(step)

    monkeypatch.setattr(batches, "batch_at", serve_and_signal)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:  # an hour between checkpoints: only the signal saves
        train_one(
            STORE,
            batches,
            SMALL,
            seed=0,
            state=tmp_path / "stopped",
            micro_batch=64,
            checkpoint_seconds=3600.0,
        )
    assert stopped.value.code == 128 + number
    assert signal.getsignal(number) is before
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == ["step_000000011.checkpoint"]
    assert weight_bytes(run(tmp_path / "stopped")) == weight_bytes(whole)


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        run(tmp_path, fail_at=20)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step_000000019.checkpoint", "step_000000020.checkpoint"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "header", "empty"])
def test_a_damaged_checkpoint_is_refused_with_the_reason_and_the_older_one_used(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        run(tmp_path / "killed", fail_at=20)
    newest = tmp_path / "killed" / "step_000000020.checkpoint"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    broken = {
        "truncated": content[:-100],
        "flipped": content,
        "header": b"x" + content,
        "empty": b"",
    }
    newest.write_bytes(bytes(broken[damage]))
    caplog.set_level(logging.INFO, logger="ghosttrack")
    resumed = run(tmp_path / "killed")
    assert "step_000000020.checkpoint is not used: its" in caplog.text
    assert "resuming from the checkpoint of step 19" in caplog.text
    assert weight_bytes(resumed) == weight_bytes(whole)


@pytest.mark.parametrize("change", ["settings", "seed", "data", "code"])
def test_a_checkpoint_of_another_run_is_refused_and_outlived(
    change: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InterruptedError):
        run(tmp_path, fail_at=40)
    settings, seed, code = SMALL, 0, ""
    if change == "settings":
        settings = SMALL.model_copy(update={"aux_coefficient": 0.5})
    elif change == "seed":
        seed = 1
    elif change == "data":
        monkeypatch.setattr(STORE, "name", "other data")
    else:
        code = "edited"

    def start(fail_at: int | None) -> TrainedSae:
        batches = MemoryBatches(STORE, SMALL.batch, fail_at)
        return train_one(
            STORE,
            batches,
            settings,
            seed=seed,
            state=tmp_path,
            micro_batch=64,
            code=code,
            checkpoint_seconds=0.0,
        )

    with pytest.raises(InterruptedError):
        start(fail_at=5)
    assert "is not used: it is from other activations, settings, seed or code" in caplog.text
    caplog.clear()
    caplog.set_level(logging.INFO, logger="ghosttrack")
    start(fail_at=None)  # the foreign files have higher numbers, and still ours are found
    assert "resuming from the checkpoint of step 5 " in caplog.text


def test_the_micro_batch_changes_the_result_by_rounding_only(tmp_path: Path) -> None:
    whole, parts = run(tmp_path / "a"), run(tmp_path / "b", micro_batch=13)
    assert parts.history[-1].fvu == pytest.approx(whole.history[-1].fvu, rel=1e-2)


def test_the_learning_rate_rises_stays_and_falls_to_almost_nothing() -> None:
    rates = [Schedule(1.0, 100, warmup=0.1, decay=0.2).rate(step) for step in range(100)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    assert set(rates[9:80]) == {1.0}
    np.testing.assert_allclose(rates[80:], np.arange(20, 0, -1) / 20)


def test_without_a_learning_rate_the_square_root_rule_applies() -> None:
    assert schedule(SaeSettings(d_sae=16_384, batch=4096), 10).peak == pytest.approx(2e-4)
    assert schedule(SaeSettings(d_sae=4096, batch=1024), 10).peak == pytest.approx(2e-4)
    assert schedule(SaeSettings(d_sae=4096, learning_rate=1e-3), 10).peak == 1e-3


def test_the_history_ends_at_the_last_step_and_counts_tokens(tmp_path: Path) -> None:
    history = run(tmp_path).history
    assert history[-1].step == 3 * 1024 // 64
    assert all(row.tokens == row.step * 64 for row in history)
    assert history[-1].fvu < history[0].fvu
    assert {row.l0 for row in history} == {float(SMALL.k)}


def test_statistics_are_those_of_the_kept_rows() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((9000, 8)) + 5.0
    excluded = rng.random(9000) < 0.1
    values[excluded] = 1e4
    store = MemoryRows(values, excluded)
    normaliser = fit_normaliser(store)
    kept = store.values[~excluded].astype(np.float64)
    np.testing.assert_allclose(normaliser.mean, kept.mean(axis=0), rtol=1e-6)
    y = torch.cat([normaliser(x) for x in blocks(store)])
    assert y.shape == (int((~excluded).sum()), 8)
    assert float(y.pow(2).sum(1).mean()) == pytest.approx(8.0, rel=1e-5)


def test_data_that_cannot_be_trained_on_are_named(tmp_path: Path) -> None:
    constant = MemoryRows(np.ones((128, 4)))
    with pytest.raises(UserError, match="constant or damaged"):
        train_one(
            constant, MemoryBatches(constant, 64), SMALL, seed=0, state=tmp_path, micro_batch=64
        )
    none_kept = MemoryRows(np.ones((128, 4)), np.ones(128, dtype=np.bool_))
    with pytest.raises(UserError, match=r"corpus\.tokens"):
        fit_normaliser(none_kept)
    with pytest.raises(UserError, match=r"sae\.k: 64 .* sae\.d_sae: 48"):
        run(tmp_path, SMALL.model_copy(update={"k": 64}))

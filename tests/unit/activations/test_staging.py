"""Rows that a device encodes and copies: the same bytes as those that the host encodes."""

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import small_models
import torch
from small_stores import HEADER, make_rows

from ghosttrack.activations import extraction, int8s, staging
from ghosttrack.activations.extraction import Lanes, ModelIdentity, StoreFiles
from ghosttrack.activations.layout import CHUNK_ROWS, SHARD_ROWS
from ghosttrack.activations.staging import DeviceStage, HostStage, Stage
from ghosttrack.activations.store import Storage, to_block
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.errors import UserError

WIDTH = 64
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _handle: None)


def chunk(seed: int, width: int, sinks: int = 0) -> npt.NDArray[np.float16]:
    """As a residual stream: unequal channels with means, a constant one, and attention sinks."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((CHUNK_ROWS, width)) * np.geomspace(0.01, 20, width)
    values += generator.standard_normal(width) * 3
    values[:, 5] = 1.5
    values[generator.permutation(CHUNK_ROWS)[:sinks]] *= 300
    return values.astype(np.float16)


def assert_same_code(values: npt.NDArray[np.float16], device: str) -> None:
    expected = int8s.encode(values)
    found = int8s.encode_tensor(torch.from_numpy(values).to(device))
    for name in ("levels", "row_scale", "mean", "deviation"):
        ours, theirs = getattr(found, name).cpu().numpy(), getattr(expected, name)
        assert ours.tobytes() == theirs.tobytes(), name
    np.testing.assert_array_equal(
        np.flatnonzero(found.outlier.cpu().numpy()), expected.outlier_rows
    )


# ---- the encoder of a device
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("width", [64, 128, 576, 640, 768])
@pytest.mark.parametrize("sinks", [0, 1, 16, 300])
def test_a_device_encodes_to_the_bytes_of_the_host(device: str, width: int, sinks: int) -> None:
    assert_same_code(chunk(width + sinks, width, sinks), device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [0.0, 3.5, -65_504.0, 6e-8])
def test_constant_rows_are_encoded_alike_too(device: str, value: float) -> None:
    assert_same_code(np.full((CHUNK_ROWS, WIDTH), value, dtype=np.float16), device)


@pytest.mark.parametrize("device", DEVICES)
def test_sums_of_every_magnitude_are_added_in_the_order_of_the_host(device: str) -> None:
    # A sum in another order differs in its last digits.
    values = chunk(0, 256)
    values *= np.exp2(np.random.default_rng(1).integers(-8, 8, values.shape)).astype(np.float16)
    assert_same_code(values, device)


# ---- the stages
def rows_of(count: int, scale: int) -> npt.NDArray[np.float32]:
    values = make_rows(count, width=WIDTH) * np.float32(1000 * scale)
    values[::10] *= 100  # first positions, some with values beyond the range
    values[17] *= 200
    return values


def write(
    folder: Path, stage: Stage, values: npt.NDArray[np.float32], step: int, **about: Any
) -> None:
    header = HEADER._replace(**about)
    place = folder / "a.zarr", folder / "a.json"
    with StoreWriter(*place, header, rows=len(values), d_model=WIDTH) as writer:
        ready: list[staging.Ready] = []
        for start in range(0, len(values), step):
            rows = torch.from_numpy(values[start : start + step].copy())
            ready += stage.take(rows, exact=start < CHUNK_ROWS)
            rows.fill_(np.nan)  # a model may change its output in place
        for block in [*ready, *stage.rest()]:
            writer.append(block())


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("storage", ["fp16", "int8s"])
@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize(
    ("count", "step"), [(10_000, 3_000), (9_000, 9_000), (8_192, 4_096), (100, 33), (4_097, 1_024)]
)
def test_both_stages_give_the_same_files(
    storage: Storage, scale: int, count: int, step: int, tmp_path: Path
) -> None:
    values, about = rows_of(count, scale), {"storage": storage, "scale": scale}
    write(tmp_path / "host", HostStage(scale), values, step, **about)
    write(tmp_path / "device", DeviceStage(storage, scale), values, step, **about)
    found = contents(tmp_path / "device")
    assert found == contents(tmp_path / "host")
    assert b'"clipped": 0' not in found["a.json"]
    assert (b'"storage_error": null' in found["a.json"]) == (count <= WIDTH)


@pytest.mark.gpu
@pytest.mark.parametrize("storage", ["fp16", "int8s"])
def test_rows_of_a_gpu_arrive_although_their_memory_is_reused(
    storage: Storage, tmp_path: Path
) -> None:
    values = rows_of(10_000, 1)
    write(tmp_path / "host", HostStage(1), values, 3_000, storage=storage)
    stage = DeviceStage(storage, 1)
    header = HEADER._replace(storage=storage)
    place = tmp_path / "gpu" / "a.zarr", tmp_path / "gpu" / "a.json"
    with StoreWriter(*place, header, rows=len(values), d_model=WIDTH) as writer:
        ready: list[staging.Ready] = []
        for start in range(0, len(values), 3_000):
            rows = torch.from_numpy(values[start : start + 3_000]).cuda()
            ready += stage.take(rows, exact=start < CHUNK_ROWS)
            rows.fill_(torch.nan)
            del rows
            torch.full((3_000, WIDTH), torch.nan, device="cuda")
        for block in [*ready, *stage.rest()]:
            writer.append(block())
    shard = "a.zarr/resid_post/c/0/0"
    assert contents(tmp_path / "gpu")[shard] == contents(tmp_path / "host")[shard]


@pytest.mark.parametrize(
    ("storage", "before", "rows"),
    [("int8s", 1, CHUNK_ROWS), ("int8s", 0, 100), ("fp16", 0, CHUNK_ROWS)],
)
def test_encoded_rows_that_are_no_chunk_of_the_store_are_not_written(
    storage: Storage, before: int, rows: int, tmp_path: Path
) -> None:
    block = to_block(make_rows(rows))
    assert isinstance(block.values, np.ndarray)
    coded = block._replace(values=int8s.encode(block.values))
    header = HEADER._replace(storage=storage)
    writer = StoreWriter(tmp_path / "a.zarr", tmp_path / "a.json", header, rows=9_000, d_model=8)
    blocks = [*([to_block(make_rows(before))] if before else []), coded]
    with pytest.raises(ValueError, match=f"{rows} encoded rows from row {before} on"), writer:
        list(map(writer.append, blocks))


# ---- extraction
def extract(folder: Path, storage: Storage) -> None:
    model = small_models.make_model("gpt2")
    tokens = np.random.default_rng(0).integers(1, 400, (700, 12), dtype=np.int32)
    targets = [StoreFiles(folder / f"{layer}.zarr", folder / f"{layer}.json") for layer in range(3)]
    wanted = extraction.Extraction("resid_post", 50, storage=storage)
    origin = ModelIdentity("tiny", "weights")
    extraction.extract_contexts(model, origin, tokens, range(3), targets, wanted)


@pytest.mark.parametrize("storage", ["fp16", "int8s"])
def test_extraction_through_a_device_gives_the_same_files(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(tmp_path / "host", storage)
    monkeypatch.setattr(staging, "HostStage", partial(DeviceStage, storage))
    extract(tmp_path / "device", storage)
    found, expected = (contents(tmp_path / name) for name in ("device", "host"))
    assert found.keys() == expected.keys()
    if storage == "fp16":  # the sums of 16 channels have another order, see int8s.encode_tensor
        assert found == expected


# ---- the threads that write
def within(seconds: float, call: Callable[[], Any]) -> Any:
    """The result of a call; fails if it takes longer."""
    result: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            result.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "hangs"
    if errors:
        raise errors[0]
    return result[0]


@pytest.mark.parametrize("ahead", [1, 3])
def test_lanes_run_side_by_side_and_the_calls_of_a_lane_in_their_order(
    ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "_cores", lambda: 3)
    meeting, seen = threading.Barrier(3, timeout=20), [[], [], []]  # type: ignore[var-annotated]

    def call(lane: int, number: int) -> None:
        meeting.wait()
        time.sleep(0.002 * ((lane + number) % 3))
        seen[lane].append(number)

    def run() -> None:
        with Lanes(3, ahead) as lanes:
            for number in range(9):
                lanes.submit([partial(call, lane, number) for lane in range(3)])
            lanes.wait()

    within(60, run)
    assert seen == [list(range(9))] * 3


def test_the_caller_is_ahead_by_so_many_sets_of_calls() -> None:
    going_on, submitted = threading.Event(), []

    def call() -> None:
        going_on.wait(20)

    def run() -> None:
        with Lanes(1, 2) as lanes:
            for number in range(4):
                lanes.submit([call])
                submitted.append(number)

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.2)
    assert submitted == [0, 1]
    going_on.set()
    thread.join(20)
    assert submitted == [0, 1, 2, 3]


def test_no_more_lanes_run_at_once_than_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "_cores", lambda: 2)
    running, most = [], [0]

    def call() -> None:
        running.append(1)
        most[0] = max(most[0], len(running))
        time.sleep(0.01)
        running.pop()

    def run() -> None:
        with Lanes(6, 1) as lanes:
            lanes.submit([call] * 6)
            lanes.wait()

    within(60, run)
    assert most == [2]


@pytest.mark.parametrize("ahead", [1, 3])
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_after_an_error_no_call_of_a_later_set_starts(ahead: int, failing: int) -> None:
    ended: list[tuple[int, int]] = []

    def call(lane: int, number: int) -> None:
        if (lane, number) == (failing, 2):
            raise UserError("no space")
        assert number <= 2 or lane != failing
        ended.append((lane, number))

    def run() -> None:
        with Lanes(3, ahead) as lanes:
            for number in range(20):
                lanes.submit([partial(call, lane, number) for lane in range(3)])
            lanes.wait()

    before = threading.active_count()
    with pytest.raises(UserError, match="no space"):
        within(60, run)
    assert max(number for lane, number in ended if lane == failing) == 1
    assert threading.active_count() == before


def test_of_two_errors_in_a_set_the_one_of_the_first_lane_is_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(extraction, "_cores", lambda: 2)
    second_failed = threading.Event()

    def first() -> None:
        second_failed.wait(20)
        raise UserError("first lane")

    def second() -> None:
        second_failed.set()
        raise UserError("second lane")

    def run() -> None:
        with Lanes(2, 3) as lanes:
            lanes.submit([first, second])
            lanes.wait()

    with pytest.raises(UserError, match="first lane"):
        within(60, run)


@pytest.mark.parametrize("failing", [0, 2])
def test_a_writer_that_fails_stops_the_job_with_its_own_error_and_leaves_no_thread(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, before = StoreWriter.append, threading.active_count()

    def failing_append(writer: StoreWriter, block: Any) -> None:
        if writer._header.layer == failing and writer._done > 1_000:
            raise OSError(28, "No space left on device")
        append(writer, block)

    monkeypatch.setattr(StoreWriter, "append", failing_append)
    with pytest.raises(OSError, match="No space left"):
        within(60, lambda: extract(tmp_path, "int8s"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert threading.active_count() <= before


def test_a_job_resumes_after_a_writer_failed_in_a_later_shard_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = np.random.default_rng(0).integers(1, 400, (1_200, 60), dtype=np.int32)
    model = small_models.make_model("gpt2")
    append = StoreWriter.append

    def run(folder: Path) -> None:
        targets = [StoreFiles(folder / f"{n}.zarr", folder / f"{n}.json") for n in range(2)]
        wanted = extraction.Extraction("resid_post", 100, storage="int8s", code="code")
        origin = ModelIdentity("tiny", "weights")
        extraction.extract_contexts(model, origin, tokens, range(2), targets, wanted)

    def failing_append(writer: StoreWriter, block: Any) -> None:
        if writer._header.layer == 1 and writer._done >= SHARD_ROWS:
            raise OSError(28, "No space left on device")
        append(writer, block)

    run(tmp_path / "whole")
    for device in (False, True):
        folder = tmp_path / f"resumed_{device}"
        with monkeypatch.context() as patched:
            if device:
                patched.setattr(staging, "HostStage", partial(DeviceStage, "int8s"))
            patched.setattr(StoreWriter, "append", failing_append)
            with pytest.raises(OSError, match="No space left"):
                run(folder)
            patched.setattr(StoreWriter, "append", append)
            kept = [len(list(folder.rglob(f"{n}.zarr.partial/progress/*.npz"))) for n in range(2)]
            assert kept[1] == 1
            run(folder)
        found, expected = contents(folder), contents(tmp_path / "whole")
        assert found.keys() == expected.keys()
        assert found == expected or device  # 16 channels: see above

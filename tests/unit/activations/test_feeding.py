"""Batches are the same bits wherever the rows are kept, and however they come to the device."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from small_stores import flip, overwrite, truncate

from ghosttrack.activations import device_rows, read_ahead, sampler
from ghosttrack.activations.device_rows import PinnedCopier
from ghosttrack.activations.layout import CHUNK_ROWS, HALF_MAX
from ghosttrack.activations.reader import ActivationStore
from ghosttrack.activations.sampler import ChunkSampler, fit
from ghosttrack.activations.store import Header, read_flat, to_block
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.errors import UserError

ROWS, WIDTH, CONTEXT, BATCH, SEED, WINDOW = 30_000, 24, 50, 700, 5, 3
CUTS = [(0, 17_000), (17_000, ROWS)]
CPU = torch.device("cpu")


def write(folder: Path, storage: Any, scale: int = 1) -> list[tuple[Path, Path]]:
    """Two stores with incomplete chunks, massive rows, and values that fill the float16 range."""
    values = np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)
    values *= np.geomspace(0.001, 300, WIDTH, dtype=np.float32)
    values[::71] *= 60  # massive, at times an outlier of its chunk
    # A chunk of small rows: its larger rows are outliers of the chunk, but massive in no store.
    values[8_192:12_288] *= 0.01
    values[8_200:12_000:97] *= 50
    # A chunk whose rounding errors exceed the range.
    values[20_000:21_000, 0] = HALF_MAX * np.sign(values[20_000:21_000, 0])
    paths = []
    for start, stop in CUTS:
        target, manifest = folder / f"{start}.zarr", folder / f"{start}.json"
        header = Header("tiny", "weights", 0, "resid_post", CONTEXT, "tokens", storage, scale=scale)
        with StoreWriter(
            target,
            manifest,
            header,
            rows=stop - start,
            d_model=WIDTH,
            row_start=start,
            total_rows=ROWS,
        ) as writer:
            rows = values[start:stop].clip(-HALF_MAX, HALF_MAX) * np.float32(scale)
            writer.append(to_block(rows, scale=scale))
        paths.append((target, manifest))
    return paths


def open_all(paths: list[tuple[Path, Path]]) -> ActivationStore:
    return ActivationStore.open([store for store, _ in paths], [manifest for _, manifest in paths])


@pytest.fixture(
    scope="module",
    params=[("fp16", 1), ("int8s", 1), ("int8s", 8)],
    ids=["fp16", "int8s", "int8s, scale 8"],
)
def paths(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[Path, Path]]:
    return write(tmp_path_factory.mktemp("store"), *request.param)


def decoded(paths: list[tuple[Path, Path]]) -> npt.NDArray[np.float16]:
    """All rows in units of the scale, decoded with numpy from the arrays of the store."""
    store = open_all(paths)
    if store.storage == "fp16":
        return np.concatenate([store.half(chunk) for chunk in range(len(store.chunk_bounds) - 1)])
    parts = []
    for target, _ in paths:
        flat = {
            name: read_flat(target, name)
            for name in ("row_scale", "mean", "deviation", "outlier_rows", "outliers")
        }
        rows = len(flat["row_scale"])
        chunk = np.arange(rows) // CHUNK_ROWS
        first = int(target.stem)
        levels = np.empty((rows, WIDTH), dtype=np.int8)
        for number, start in enumerate(store.chunk_bounds[:-1].tolist()):
            if first <= start < first + rows:
                stop = int(store.chunk_bounds[number + 1])
                store.read_stored(number, levels[start - first : stop - first])
        values = levels.astype(np.float32) * flat["row_scale"][:, None]
        values = values * flat["deviation"][chunk]
        values = values + flat["mean"][chunk]
        half = values.clip(-HALF_MAX, HALF_MAX).astype(np.float16)
        half[flat["outlier_rows"]] = flat["outliers"]
        parts.append(half)
    return np.concatenate(parts)


def expected(paths: list[tuple[Path, Path]], epoch: int) -> npt.NDArray[np.float32]:
    """All batches of an epoch, in the order that the sampler documents."""
    store, values = open_all(paths), decoded(paths)
    bounds = store.chunk_bounds
    order = np.random.default_rng([SEED, epoch]).permutation(len(bounds) - 1)
    rows = []
    for index, first in enumerate(range(0, len(order), WINDOW)):
        window = np.concatenate(
            [np.arange(bounds[chunk], bounds[chunk + 1]) for chunk in order[first : first + WINDOW]]
        )
        window = window[~store.excluded[window]]
        shuffle = np.random.default_rng([SEED, epoch, index + 1]).permutation(len(window))
        rows.append(window[shuffle])
    served = np.concatenate(rows)
    served = served[: len(served) // BATCH * BATCH]
    batches: npt.NDArray[np.float32] = values[served].astype(np.float32) * np.float32(store.scale)
    return batches.reshape(-1, BATCH, WIDTH)


MODES: dict[str, dict[str, Any]] = {
    "resident": {},
    "resident, as stored": {"keep_stored": True},
    "windows": {"resident": False},
    "windows, without a thread": {"resident": False, "read_ahead": False},
    "resident, without a thread": {"keep_stored": True, "read_ahead": False},
}


def make(paths: list[tuple[Path, Path]], **options: Any) -> ChunkSampler:
    return ChunkSampler(open_all(paths), BATCH, SEED, **{"window_chunks": WINDOW, **options})


def require_two_epochs(found: ChunkSampler, paths: list[tuple[Path, Path]]) -> None:
    for epoch in range(2):
        for number, batch in enumerate(expected(paths, epoch)):
            served = found.batch_at(epoch * found.batches_per_epoch + number)
            assert served.dtype == torch.float32
            np.testing.assert_array_equal(served.cpu().numpy(), batch)


@pytest.mark.parametrize("mode", MODES)
def test_batches_are_the_bits_of_a_plain_reference_in_every_mode(
    mode: str, paths: list[tuple[Path, Path]]
) -> None:
    require_two_epochs(make(paths, **MODES[mode]), paths)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
def test_batches_on_a_gpu_are_the_bits_of_the_reference(
    mode: str, paths: list[tuple[Path, Path]]
) -> None:
    found = make(paths, device=torch.device("cuda"), **MODES[mode])
    assert found.batch_at(0).is_cuda
    require_two_epochs(found, paths)


def test_the_stores_of_these_tests_hold_the_hard_cases(paths: list[tuple[Path, Path]]) -> None:
    store, values = open_all(paths), decoded(paths)
    np.testing.assert_array_equal(store.read(), values.astype(np.float32) * store.scale)
    assert (np.abs(values[20_000:21_000, 0]) == HALF_MAX).sum() > 100
    if store.storage == "int8s":
        codings = [store.coding(chunk) for chunk in range(len(store.chunk_bounds) - 1)]
        served = [
            int((~store.excluded[start + coding.outlier_rows]).sum())
            for coding, start in zip(codings, store.chunk_bounds, strict=False)
            if coding is not None
        ]
        assert sum(served) > 10  # outliers that are served


@pytest.mark.parametrize("resident", [True, False])
def test_a_run_that_goes_on_at_any_step_gets_the_same_batches(
    resident: bool, paths: list[tuple[Path, Path]]
) -> None:
    batches = np.concatenate([expected(paths, 0), expected(paths, 1)])
    for step in (len(batches) - 1, 13, 40, 12):
        found = make(paths, resident=resident, keep_stored=True)
        for later in range(step, min(step + 3, len(batches))):
            np.testing.assert_array_equal(found.batch_at(later).numpy(), batches[later])


def test_only_two_windows_are_in_memory_and_one_without_a_thread(
    paths: list[tuple[Path, Path]],
) -> None:
    for ahead, most in ((True, 2), (False, 1)):
        found = make(paths, resident=False, read_ahead=ahead)
        buffers = {
            span.window.data.data_ptr()
            for step in (*range(2 * found.batches_per_epoch), 3, 90 % found.batches_per_epoch)
            for span in found.spans(step)
        }
        assert len(buffers) == most


def test_the_next_window_is_read_while_the_caller_computes(
    paths: list[tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[int, bool]] = []
    plain = ActivationStore.read_stored

    def noted(self: ActivationStore, number: int, target: Any) -> None:
        read.append((number, threading.current_thread() is threading.main_thread()))
        plain(self, number, target)

    monkeypatch.setattr(ActivationStore, "read_stored", noted)
    found = make(paths, resident=False, epochs=1)
    found.batch_at(0)
    deadline = time.monotonic() + 60
    while len(read) < 2 * WINDOW and time.monotonic() < deadline:
        time.sleep(0.001)
    assert len(read) == 2 * WINDOW  # the first window, and the next
    for step in range(1, found.batches_per_epoch):
        found.batch_at(step)
    chunks = len(open_all(paths).chunk_bounds) - 1
    assert sorted(number for number, _ in read) == list(range(chunks))  # no second epoch
    assert not any(in_main for _, in_main in read)


def damaged(folder: Path, change: Callable[[Path], None]) -> list[tuple[Path, Path]]:
    found = write(folder, "int8s")
    open_all(found)
    change(found[1][0] / "resid_post/c/0/0")
    return found


def flipped(path: Path) -> None:
    overwrite(path, 10, flip, 1)


def test_a_damaged_chunk_is_refused_by_its_batch_with_the_error_of_the_store(
    tmp_path: Path,
) -> None:
    found = make(damaged(tmp_path, flipped), resident=False)
    store = open_all([(tmp_path / f"{cut[0]}.zarr", tmp_path / f"{cut[0]}.json") for cut in CUTS])
    with pytest.raises(UserError, match="rows from 17000 on are damaged: chunk 0 has") as plain:
        store.read()
    served, error = 0, None
    for step in range(found.batches_per_epoch):
        try:
            found.batch_at(step)
            served += 1
        except UserError as raised:
            error = raised
            break
    assert str(error) == str(plain.value)
    assert 0 < served < found.batches_per_epoch - 1  # the thread read it ahead
    with pytest.raises(UserError, match="rows from 17000 on are damaged"):
        found.batch_at(served)
    with pytest.raises(UserError, match="rows from 17000 on are damaged"):
        make([(tmp_path / f"{cut[0]}.zarr", tmp_path / f"{cut[0]}.json") for cut in CUTS])


def test_a_file_that_is_truncated_while_it_is_used_is_refused(tmp_path: Path) -> None:
    paths = write(tmp_path, "fp16")
    store = open_all(paths)
    target = np.empty((CHUNK_ROWS, WIDTH), dtype=np.float16)
    store.read_stored(0, target)
    with (tmp_path / "0.zarr/resid_post/c/0/0").open("r+b") as stream:
        stream.truncate(CHUNK_ROWS * WIDTH)
    with pytest.raises(UserError, match="rows from 0 on are damaged: it ends within chunk 0"):
        store.read_stored(0, target)
    truncate(tmp_path / "17000.zarr/resid_post/c/0/0")
    with pytest.raises(UserError, match="rows from 17000 on are damaged"):
        store.read_stored(5, target)


class LazyStream:
    """A stand-in for a CUDA stream that does nothing until somebody waits for it."""

    def __init__(self, *_: Any) -> None:
        self.work: list[Callable[[], Any]] = []

    def wait_event(self, event: "LazyEvent") -> None:
        self.work.append(event.synchronize)

    def run(self, count: int) -> None:
        while count > 0 and self.work:
            self.work.pop(0)()
            count -= 1


class EagerStream(LazyStream):
    """The stream of the computation, which on a CPU is done at once."""

    def wait_event(self, event: "LazyEvent") -> None:
        event.synchronize()


class LazyEvent:
    """A stand-in for a CUDA event."""

    def __init__(self, blocking: bool) -> None:
        assert blocking

    def record(self, stream: LazyStream) -> None:
        self.done = False
        stream.work.append(lambda: setattr(self, "done", True))
        self.stream = stream

    def synchronize(self) -> None:
        while not self.done:
            self.stream.run(1)


class LazyCuda:
    """A stand-in for torch.cuda."""

    Stream, Event = LazyStream, LazyEvent

    def __init__(self) -> None:
        self.computation, self.current = EagerStream(), threading.local()
        self.sent = 0

    def current_stream(self, _device: torch.device) -> LazyStream:
        return self.computation

    @contextmanager
    def stream(self, stream: LazyStream) -> Iterator[None]:
        self.current.stream = stream
        yield

    def send(self, pinned: torch.Tensor, target: torch.Tensor) -> None:
        self.sent += 1
        self.current.stream.work.append(lambda: target.copy_(pinned))


@pytest.mark.parametrize("resident", [True, False])
def test_copies_that_run_late_change_no_bit(
    resident: bool, paths: list[tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lazy = LazyCuda()
    monkeypatch.setattr(device_rows, "cuda", lazy)
    monkeypatch.setattr(device_rows, "_send", lazy.send)
    monkeypatch.setattr(sampler, "copier", PinnedCopier)
    found = make(paths, resident=resident, keep_stored=True)
    require_two_epochs(found, paths)
    chunks = len(open_all(paths).chunk_bounds) - 1
    assert lazy.sent >= (chunks if resident else 2 * chunks)


def test_rows_fit_decoded_on_a_cpu_and_as_stored_on_a_gpu(
    paths: list[tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_all(paths)
    size = ROWS * WIDTH * 2
    assert fit([store], -(-size // 2**20))
    assert not fit([store, store], -(-size // 2**20))
    gpu, stored = torch.device("cuda"), size if store.storage == "fp16" else size // 2
    for free, fits in ((2 * stored, True), (2 * stored - 2, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device, free=free: (free, free))
        assert fit([store], 1, gpu) == fits
        assert not fit([store], 0, gpu)


def test_the_thread_passes_on_its_result_or_its_error() -> None:
    assert read_ahead.ReadAhead(lambda _stop: threading.get_ident()).result() != (
        threading.get_ident()
    )

    def fail(_stop: threading.Event) -> None:
        raise UserError("damaged")

    failing = read_ahead.ReadAhead(fail)
    for _ in range(2):
        with pytest.raises(UserError, match="damaged"):
            failing.result()
    failing.cancel()


def test_a_thread_that_is_cancelled_or_forgotten_stops() -> None:
    stopped = [threading.Event() for _ in range(2)]

    def wait(stop: threading.Event, done: threading.Event) -> None:
        stop.wait(60)
        done.set()

    reading = read_ahead.ReadAhead(lambda stop: wait(stop, stopped[0]))
    reading.cancel()
    assert stopped[0].is_set()
    reading = read_ahead.ReadAhead(lambda stop: wait(stop, stopped[1]))
    del reading
    assert stopped[1].wait(30)


HANGING = """
import sys, threading, time
from pathlib import Path
from ghosttrack.activations import read_ahead
from ghosttrack.activations.reader import ActivationStore
from ghosttrack.activations.sampler import ChunkSampler
folder, seconds, end = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
read_ahead.EXIT_SECONDS = 0.5
names = [folder / "0.zarr", folder / "17000.zarr"]
store = ActivationStore.open(names, [name.with_suffix(".json") for name in names])
found = ChunkSampler(store, 700, 5, False, 3)
plain, reads = store.read_stored, []
def slow(number, target):
    reads.append(number)
    if len(reads) > 3:
        time.sleep(seconds)  # as a disk that does not answer
    plain(number, target)
store.read_stored = slow
found.batch_at(0)
while len(reads) < 4:
    time.sleep(0.001)
if end == "error":
    raise RuntimeError("the step failed")
raise SystemExit(143)
"""


@pytest.mark.parametrize(("seconds", "end"), [(0.05, "signal"), (1000, "signal"), (1000, "error")])
def test_a_process_ends_at_once_while_its_thread_reads(
    seconds: float, end: str, tmp_path: Path
) -> None:
    write(tmp_path, "int8s")
    ended = subprocess.run(
        [sys.executable, "-c", HANGING, str(tmp_path), str(seconds), end],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert ended.returncode == (1 if end == "error" else 143), ended.stderr
    assert ("the step failed" in ended.stderr) == (end == "error")
    assert "Fatal" not in ended.stderr

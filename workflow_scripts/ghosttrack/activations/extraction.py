"""Extraction from packed contexts: one forward pass serves all layers and stops at the highest."""

import hashlib
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch

from ghosttrack.activations import staging
from ghosttrack.activations.hooks import on_output, run_to_highest
from ghosttrack.activations.layout import CHUNK_ROWS
from ghosttrack.activations.reader import ActivationStore
from ghosttrack.activations.store import Header, Storage
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.errors import UserError
from ghosttrack.inputs import models
from ghosttrack.inputs.model_precision import FLOAT32, Precision
from ghosttrack.inputs.sites import Site, site_modules
from ghosttrack.runtime import files
from ghosttrack.runtime.progress import Progress

log = logging.getLogger("ghosttrack")

# Threads that write at once. Each one encodes a chunk in memory, 4 x CHUNK_ROWS x d_model bytes.
WRITERS = 4


class ModelIdentity(NamedTuple):
    """The model that computed the activations, as named in its source.json."""

    model: str
    weights_sha256: str
    precision: str = FLOAT32.name  # of the forward pass


class StoreFiles(NamedTuple):
    """Paths of a store and its manifest."""

    store: Path
    manifest: Path


def model_identity(model_directory: Path, precision: Precision = FLOAT32) -> ModelIdentity:
    """Identity of a fetched model, from the source.json in its directory."""
    about = files.read_object(model_directory / "source.json")
    return ModelIdentity(
        str(about["id"] or about["kind"]), str(about["weights_sha256"]), precision.name
    )


def best_device() -> str:
    """The accelerator if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def tokens_sha256(tokens: npt.NDArray[np.int32]) -> str:
    """Hex SHA-256 of a token array, little-endian int32 in C order."""
    return hashlib.sha256(np.ascontiguousarray(tokens, dtype="<i4").data).hexdigest()


def open_packed(
    store: Path, manifest: Path, layer: int, model_directory: Path, tokens: npt.NDArray[np.int32]
) -> ActivationStore:
    """Open one layer's store of packed contexts.

    Raises:
        UserError: its rows come from another model or other tokens.
    """
    expected = {
        "layer": layer,
        "weights_sha256": model_identity(model_directory).weights_sha256,
        "tokens_sha256": tokens_sha256(tokens),
        "context": tokens.shape[1],
    }
    return ActivationStore.open([store], [manifest], expected)


class Extraction(NamedTuple):
    """Which packed contexts one job reads, and how."""

    site: Site  # which output of each block
    batch: int  # contexts per forward pass; changes only memory and rounding noise
    first: int = 0  # first context
    contexts: int | None = None  # number of contexts; None: all from the first on
    storage: Storage = "fp16"
    code: str = ""  # digest of the code; a job resumes only rows of the same code
    scales: Sequence[int] | None = None  # by layer, from `limits.scales`; None: 1


def extract_contexts(
    model: Any,
    identity: ModelIdentity,
    tokens: npt.NDArray[np.int32],
    layers: Sequence[int],
    targets: Sequence[StoreFiles],
    extraction: Extraction,
) -> None:
    """Write the activations of packed contexts: one store per layer, rows in corpus order.

    A killed job resumes after the last shard file (65,536 rows) that is complete in every layer.

    Args:
        model: causal language model in evaluation mode.
        identity: kept in the stores.
        tokens: (contexts, context) int32, the whole corpus; each context starts with the separator.
        layers: ascending, 0-based; `targets` in the same order.
        extraction: which contexts to read, and how to store them.
    Raises:
        UserError: no such contexts or layers, contexts longer than the model takes, or activations
            that are not finite or beyond the range of the stores.
    """
    chosen = _chosen_contexts(model, tokens, extraction)
    context, batch = tokens.shape[1], extraction.batch
    modules = site_modules(model, layers, extraction.site)
    digest, width = tokens_sha256(tokens), model.config.get_text_config().hidden_size
    scales = extraction.scales or [1] * len(layers)
    with ExitStack() as stack, torch.inference_mode():
        writers = [
            stack.enter_context(
                StoreWriter(
                    *target,
                    Header(
                        identity.model,
                        identity.weights_sha256,
                        layer,
                        extraction.site,
                        context,
                        digest,
                        extraction.storage,
                        identity.precision,
                        scale,
                    ),
                    rows=chosen.size,
                    d_model=width,
                    row_start=extraction.first * context,
                    total_rows=tokens.size,
                    resume=extraction.code,
                )
            )
            for layer, target, scale in zip(layers, targets, scales, strict=True)
        ]
        done = min(writer.finished_rows for writer in writers)
        if done:
            log.info(
                "resuming after row %s of %s, written by an earlier job",
                f"{done:,}",
                f"{chosen.size:,}",
            )
        for writer in writers:
            writer.resume_after(done)
        stages = [staging.stage(model.device, extraction.storage, scale) for scale in scales]
        lanes = stack.enter_context(Lanes(len(writers), stages[0].ahead))
        progress = Progress("extracting", chosen.size, "tokens", start=done)
        ready: list[list[staging.Ready]] = []  # by layer
        skip, measured = 0, False

        def take(index: int, output: torch.Tensor) -> None:
            # Rounded at once, so that the pass holds no more than one layer's copy in float32.
            # The storage error is measured once, in the highest layer, where it is usually largest.
            last = index == len(modules) - 1
            rows = output.flatten(0, 1)[skip:]
            ready.append(stages[index].take(rows, exact=measured and last))

        def write(ready: list[list[staging.Ready]]) -> None:
            lanes.submit(
                [
                    partial(_append, writer, blocks)
                    for writer, blocks in zip(writers, ready, strict=True)
                ]
            )

        stack.enter_context(on_output(modules, take, stop=True))
        # The batches are those of an uninterrupted run, so that a resumed one rounds alike.
        for start in range(
            done // (batch * context) * batch, len(chosen) if done < chosen.size else 0, batch
        ):
            ids = torch.from_numpy(chosen[start : start + batch].astype(np.int64)).to(model.device)
            skip = max(0, done - start * context)
            measured = extraction.first == 0 and start * context < CHUNK_ROWS
            ready = []
            run_to_highest(model, ids)
            write(ready)
            progress.advance(ids.numel() - skip)
        write([stage.rest() for stage in stages])
        lanes.submit([writer.finish for writer in writers])
        lanes.wait()


def _append(writer: StoreWriter, ready: Sequence[staging.Ready]) -> None:
    for block in ready:
        writer.append(block())


def _chosen_contexts(
    model: Any, tokens: npt.NDArray[np.int32], extraction: Extraction
) -> npt.NDArray[np.int32]:
    contexts, context = tokens.shape
    limit = models.max_context(model.config.to_dict())
    if context > limit:
        raise UserError(
            f"corpus.context: {context} tokens are more than the model takes ({limit}); "
            f"set it to {limit} or less"
        )
    first = extraction.first
    chosen = tokens[first:][: extraction.contexts]
    if not len(chosen):
        raise UserError(
            f"the corpus has {contexts} contexts, this job starts at context {first}: "
            "corpus and corpus.tokens disagree; delete the corpus folder and run again"
        )
    return chosen


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Lanes:
    """Runs calls in threads while the caller prepares the next ones.

    Calls of one lane run one after the other, those of several lanes side by side. After an error
    no call of a later set is started, and `submit` or `wait` raises the first error by set and
    lane.

    Args:
        lanes: number of lanes; up to WRITERS of them run at once, one per core.
        ahead: unfinished sets of calls with which `submit` returns.
    """

    def __init__(self, lanes: int, ahead: int) -> None:
        self._lanes, self._ahead = lanes, ahead
        self._turns = threading.BoundedSemaphore(min(_cores(), WRITERS))
        self._sets: deque[list[Future[None]]] = deque()
        self._submitted = 0
        self._failed = sys.maxsize  # number of the first set with an error
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._threads = [
            ThreadPoolExecutor(1, thread_name_prefix=f"writer_{lane}")
            for lane in range(self._lanes)
        ]
        return self

    def submit(self, calls: Sequence[Callable[[], None]]) -> None:
        """Start one call per lane after the lane's earlier ones."""
        while len(self._sets) >= self._ahead:
            self._end_set()
        self._sets.append(
            [
                thread.submit(self._run, self._submitted, call)
                for thread, call in zip(self._threads, calls, strict=True)
            ]
        )
        self._submitted += 1

    def wait(self) -> None:
        """Wait until all calls have ended."""
        while self._sets:
            self._end_set()

    def _end_set(self) -> None:
        calls = self._sets.popleft()
        wait(calls)
        for call in calls:
            call.result()

    def _run(self, number: int, call: Callable[[], None]) -> None:
        with self._turns:
            if number > self._failed:
                return  # the rows of the failed call are missing, so no later ones may follow
            try:
                call()
            except BaseException:
                with self._lock:
                    self._failed = min(self._failed, number)
                raise

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.shutdown()

"""Extraction from packed contexts: one forward pass serves all layers and stops at the highest."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch

from ghosttrack.activations.hooks import on_output, run_to_highest
from ghosttrack.activations.layout import CHUNK_ROWS
from ghosttrack.activations.reader import ActivationStore
from ghosttrack.activations.store import Block, Header, Storage, to_block
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.errors import UserError
from ghosttrack.inputs import models
from ghosttrack.inputs.model_precision import FLOAT32, Precision
from ghosttrack.inputs.sites import Site, site_modules
from ghosttrack.runtime import files
from ghosttrack.runtime.progress import Progress

log = logging.getLogger("ghosttrack")


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
    about = files.read_json(model_directory / "source.json")
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
        ahead = stack.enter_context(OneAhead())
        progress = Progress("extracting", chosen.size, "tokens", start=done)
        blocks: list[Block] = []
        skip, measured = 0, False

        def take(index: int, output: torch.Tensor) -> None:
            # Rounded at once, so that the pass holds no more than one layer's copy in float32.
            # The storage error is measured once, in the highest layer, where it is usually largest.
            last = index == len(modules) - 1
            rows = output.flatten(0, 1)[skip:]
            blocks.append(to_block(rows, exact=measured and last, scale=scales[index]))

        def write(blocks: list[Block]) -> None:
            for writer, block in zip(writers, blocks, strict=True):
                writer.append(block)

        stack.enter_context(on_output(modules, take, stop=True))
        # The batches are those of an uninterrupted run, so that a resumed one rounds alike.
        for start in range(
            done // (batch * context) * batch, len(chosen) if done < chosen.size else 0, batch
        ):
            ids = torch.from_numpy(chosen[start : start + batch].astype(np.int64)).to(model.device)
            skip = max(0, done - start * context)
            measured = extraction.first == 0 and start * context < CHUNK_ROWS
            blocks = []
            run_to_highest(model, ids)
            ahead.submit(write, blocks)
            progress.advance(ids.numel() - skip)
        ahead.wait()
        for writer in writers:
            writer.finish()


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


class OneAhead:
    """Runs one call at a time in a thread while its caller prepares the next.

    An error of a call is raised by the next `submit` or `wait`.
    """

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._running: Future[None] | None = None
        return self

    def submit(self, call: Callable[..., None], *arguments: Any) -> None:
        """Start `call` as soon as the previous one is done."""
        self.wait()
        self._running = self._pool.submit(call, *arguments)

    def wait(self) -> None:
        """Wait until nothing runs; raises what the last call raised."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

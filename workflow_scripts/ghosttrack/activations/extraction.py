"""From packed contexts to activation stores: one forward pass serves every layer and stops at the highest."""

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

from ghosttrack.activations.hooks import handed_over, run_to_highest
from ghosttrack.activations.layout import CHUNK_ROWS, HALF_MAX
from ghosttrack.activations.reader import ActivationStore
from ghosttrack.activations.store import Block, Header, Storage, clipped_rows
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.errors import UserError
from ghosttrack.inputs import models
from ghosttrack.inputs.sites import Site, site_modules
from ghosttrack.runtime import files
from ghosttrack.runtime.progress import Progress

log = logging.getLogger("ghosttrack")


class Origin(NamedTuple):
    """The model that activations come from, as its own manifest names it."""

    model: str
    weights_sha256: str


class StoreFiles(NamedTuple):
    """Where one layer's store and its manifest go."""

    store: Path
    manifest: Path


def origin(model_directory: Path) -> Origin:
    """Identity of a fetched model, from the source.json in its directory."""
    about = files.read_json(model_directory / "source.json")
    return Origin(str(about["id"] or about["kind"]), str(about["weights_sha256"]))


def best_device() -> str:
    """The accelerator if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def to_block(rows: torch.Tensor, exact: bool = False) -> Block:
    """As `store.to_block`, on the tensor's own device, (n, d_model) float32; `exact` keeps the rows as they were, too."""
    norms = torch.linalg.vector_norm(rows, dim=1)
    kept = rows.cpu().numpy() if exact else None
    if float(norms.max()) <= HALF_MAX:
        return Block(rows.half().cpu().numpy(), norms.cpu().numpy(), kept)
    values, clipped = rows.clamp(-HALF_MAX, HALF_MAX), clipped_rows(rows.float().cpu().numpy())
    return Block(values.half().cpu().numpy(), norms.cpu().numpy(), kept, clipped)


def tokens_sha256(tokens: npt.NDArray[np.int32]) -> str:
    """Hex SHA-256 of a token array, little-endian int32 in C order."""
    return hashlib.sha256(np.ascontiguousarray(tokens, dtype="<i4").data).hexdigest()


def open_packed(
    store: Path, manifest: Path, layer: int, model_directory: Path, tokens: npt.NDArray[np.int32]
) -> ActivationStore:
    """Open one layer's store of packed contexts; a UserError refuses rows of another model or other tokens."""
    expected = {
        "layer": layer,
        "weights_sha256": origin(model_directory).weights_sha256,
        "tokens_sha256": tokens_sha256(tokens),
        "context": tokens.shape[1],
    }
    return ActivationStore.open([store], [manifest], expected)


def layer_of(store: Path) -> int:
    """Layer that a store's path names, as in layer_07.zarr or layer_07/shard_0000.zarr."""
    named = [part for part in store.with_suffix("").parts if part.startswith("layer_")]
    return int(named[-1].removeprefix("layer_"))


class Extraction(NamedTuple):
    """What one job reads from packed contexts."""

    site: Site  # which output of each block
    batch: int  # contexts per forward pass; changes nothing but memory and rounding noise
    first: int = 0  # context
    contexts: int | None = None  # how many; default all that follow
    storage: Storage = "fp16"
    code: str = ""  # digest of the code: rows of another digest are not gone on with


def extract_contexts(
    model: Any,
    made_by: Origin,
    tokens: npt.NDArray[np.int32],
    layers: Sequence[int],
    targets: Sequence[StoreFiles],
    wanted: Extraction,
) -> None:
    """Write the activations of packed contexts, one store a layer, rows in corpus order.

    A job that was killed goes on behind the last shard file (65,536 rows) that it finished in every layer.

    Args:
        model: causal language model in evaluation mode.
        made_by: its identity, kept in the stores.
        tokens: (contexts, context) int32, the whole corpus; each context starts with the separator.
        layers: ascending, 0-based; `targets` in the same order.
        wanted: which contexts, and how they are read and kept.
    Raises:
        UserError: no such contexts or layers, contexts longer than the model takes, activations that are not finite.
    """
    chosen = _chosen_contexts(model, tokens, wanted)
    context, batch = tokens.shape[1], wanted.batch
    modules = site_modules(model, layers, wanted.site)
    digest, width = tokens_sha256(tokens), model.config.get_text_config().hidden_size
    with ExitStack() as stack, torch.inference_mode():
        writers = [
            stack.enter_context(
                StoreWriter(
                    *target,
                    Header(*made_by, layer, wanted.site, context, digest, wanted.storage),
                    rows=chosen.size,
                    d_model=width,
                    row_start=wanted.first * context,
                    total_rows=tokens.size,
                    resume=wanted.code,
                )
            )
            for layer, target in zip(layers, targets, strict=True)
        ]
        done = min(writer.kept_rows for writer in writers)
        if done:
            log.info(
                "going on behind row %s of %s, which an earlier job wrote",
                f"{done:,}",
                f"{chosen.size:,}",
            )
        for writer in writers:
            writer.keep(done)
        ahead = stack.enter_context(OneAhead())
        progress = Progress("extracting", chosen.size, "tokens", start=done)
        made: list[Block] = []
        skip, measured = 0, False

        def take(place: int, output: torch.Tensor) -> None:
            # Rounded at once: the pass then holds no more layers in float32 than it would by itself.
            # What storage costs is measured once, in the highest layer, where it was found to cost most.
            made.append(
                to_block(output.flatten(0, 1)[skip:], exact=measured and place == len(modules) - 1)
            )

        def write(blocks: list[Block]) -> None:
            for writer, block in zip(writers, blocks, strict=True):
                writer.append(block)

        stack.enter_context(handed_over(modules, take, stop=True))
        # The batches of an uninterrupted run: its sums, and so its rounding, are repeated.
        for start in range(
            done // (batch * context) * batch, len(chosen) if done < chosen.size else 0, batch
        ):
            ids = torch.from_numpy(chosen[start : start + batch].astype(np.int64)).to(model.device)
            skip, measured = (
                max(0, done - start * context),
                wanted.first == 0 and start * context < CHUNK_ROWS,
            )
            made = []
            run_to_highest(model, ids)
            ahead.submit(write, made)
            progress.advance(ids.numel() - skip)
        ahead.wait()
        for writer in writers:
            writer.finish()


def _chosen_contexts(
    model: Any, tokens: npt.NDArray[np.int32], wanted: Extraction
) -> npt.NDArray[np.int32]:
    contexts, context = tokens.shape
    limit = models.max_context(model.config.to_dict())
    if context > limit:
        raise UserError(
            f"corpus.context: {context} tokens are more than the model takes ({limit}); set it to at most that"
        )
    chosen = tokens[
        wanted.first : None if wanted.contexts is None else wanted.first + wanted.contexts
    ]
    if not len(chosen):
        raise UserError(
            f"the corpus has {contexts} contexts, this job starts at context {wanted.first}: corpus and corpus.tokens disagree; "
            "delete the corpus folder and run again"
        )
    return chosen


class OneAhead:
    """Runs one call at a time in a thread while its caller prepares the next; an error comes out at the next call."""

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._running: Future[None] | None = None
        return self

    def submit(self, call: Callable[..., None], *arguments: Any) -> None:
        """Start `call` as soon as the one before is done."""
        self.wait()
        self._running = self._pool.submit(call, *arguments)

    def wait(self) -> None:
        """Until nothing runs; raises what the last call raised."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

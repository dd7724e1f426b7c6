"""From packed contexts to activation stores: one forward pass serves every layer and stops at the highest."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ghosttrack import files
from ghosttrack.activations.store import HALF_MAX, Block, Header, StoreWriter
from ghosttrack.errors import UserError
from ghosttrack.inputs import models
from ghosttrack.progress import Progress

Site = Literal["resid_post", "mlp_out", "attn_out"]


class Origin(NamedTuple):
    """The model that activations come from, as its own manifest names it."""

    model: str
    weights_sha256: str


class StoreFiles(NamedTuple):
    """Where one layer's store and its manifest go."""

    store: Path
    manifest: Path


class _HighestLayerReached(Exception):  # noqa: N818 (not an error: it ends a forward pass early)
    """Raised by the last hook, caught by the caller of the model."""


def origin(model_directory: Path) -> Origin:
    """Identity of a fetched model, from the source.json in its directory."""
    about = files.read_json(model_directory / "source.json")
    return Origin(str(about["id"] or about["kind"]), str(about["weights_sha256"]))


def best_device() -> str:
    """The accelerator if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def captured(modules: Sequence[nn.Module], *, stop: bool) -> Iterator[list[torch.Tensor]]:
    """Collect the main output of each module, (batch, position, d_model), in a list that every pass refills.

    With `stop`, a forward pass ends as soon as the last module has run: give the modules in the
    order in which they run, and call the model through `run_to_highest`.
    """
    outputs: list[torch.Tensor] = [torch.empty(0)] * len(modules)

    def hook(place: int) -> Callable[[nn.Module, Any, Any], None]:
        def keep(_module: nn.Module, _arguments: Any, output: Any) -> None:
            outputs[place] = models.first_tensor(output)
            if stop and place == len(modules) - 1:
                raise _HighestLayerReached

        return keep

    handles = [module.register_forward_hook(hook(place)) for place, module in enumerate(modules)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def run_to_highest(model: Any, ids: torch.Tensor) -> None:
    """One forward pass under `captured(..., stop=True)`; nothing above the last module is computed."""
    try:
        model(input_ids=ids, use_cache=False)
    except _HighestLayerReached:
        return
    raise RuntimeError("the forward pass never reached the module it should stop at")


def to_block(rows: torch.Tensor) -> Block:
    """As `store.to_block`, on the tensor's own device; (n, d_model) float32."""
    norms = torch.linalg.vector_norm(rows, dim=1)
    low, high = torch.aminmax(rows)
    clipped = 0
    if max(-float(low), float(high)) > HALF_MAX:
        clipped = int((rows.abs() > HALF_MAX).sum())
        rows = rows.clamp(-HALF_MAX, HALF_MAX)
    return Block(rows.half().cpu().numpy(), norms.cpu().numpy(), clipped)


def site_modules(model: nn.Module, layers: Sequence[int], site: Site) -> list[nn.Module]:
    """The modules whose outputs are stored, in ascending layer order."""
    count = len(models.blocks(model))
    if list(layers) != sorted(set(layers)) or not layers or layers[0] < 0 or layers[-1] >= count:
        raise UserError(
            f"activations.layers: {list(layers)} must be ascending within 0..{count - 1}, the model's blocks"
        )
    return [models.block_site(model, layer, site) for layer in layers]


def tokens_sha256(tokens: npt.NDArray[np.int32]) -> str:
    """Hex SHA-256 of a token array, little-endian int32 in C order."""
    return hashlib.sha256(np.ascontiguousarray(tokens, dtype="<i4").tobytes()).hexdigest()


def layer_of(store: Path) -> int:
    """Layer that a store's path names, as in layer_07.zarr or layer_07/shard_0000.zarr."""
    named = [part for part in store.with_suffix("").parts if part.startswith("layer_")]
    return int(named[-1].removeprefix("layer_"))


def extract_contexts(
    model: Any, made_by: Origin, tokens: npt.NDArray[np.int32], layers: Sequence[int], targets: Sequence[StoreFiles], *,
    site: Site, batch: int, first: int = 0, count: int | None = None,
) -> None:  # fmt: skip
    """Write the activations of packed contexts, one store a layer, rows in corpus order.

    Args:
        model: causal language model in evaluation mode.
        made_by: its identity, kept in the stores.
        tokens: (contexts, context) int32, the whole corpus; each context starts with the separator.
        layers: ascending, 0-based; `targets` in the same order.
        site: which output of each block.
        batch: contexts per forward pass; changes nothing but memory and rounding noise.
        first, count: the contexts to take; default all.
    Raises:
        UserError: no such contexts or layers, contexts longer than the model takes, activations that are not finite.
    """
    contexts, context = tokens.shape
    chosen = tokens[first : contexts if count is None else first + count]
    limit = models.max_context(model.config.to_dict())
    if context > limit:
        raise UserError(
            f"corpus.context: {context} tokens are more than the model takes ({limit}); set it to at most that"
        )
    if not len(chosen):
        raise UserError(
            f"the corpus has {contexts} contexts, this job starts at context {first}: corpus and corpus.tokens disagree; "
            "delete the corpus folder and run again"
        )
    modules = site_modules(model, layers, site)
    digest = tokens_sha256(tokens)
    progress = Progress("extracting", chosen.size, "tokens")
    with ExitStack() as stack, torch.inference_mode():
        writers = [
            stack.enter_context(StoreWriter(
                target.store, target.manifest, Header(*made_by, layer, site, context, digest), rows=chosen.size,
                d_model=model.config.get_text_config().hidden_size, row_start=first * context, total_rows=tokens.size,
            ))
            for layer, target in zip(layers, targets, strict=True)
        ]  # fmt: skip
        outputs = stack.enter_context(captured(modules, stop=True))
        for start in range(0, len(chosen), batch):
            ids = torch.from_numpy(chosen[start : start + batch].astype(np.int64)).to(model.device)
            run_to_highest(model, ids)
            for writer, output in zip(writers, outputs, strict=True):
                writer.append(to_block(output.flatten(0, 1)))  # (batch * context, d_model)
            progress.advance(ids.numel())

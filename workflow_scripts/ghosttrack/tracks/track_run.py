"""One tracking job: activations of a data set -> codes -> tracks on disk, batch by batch."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ghosttrack import sae
from ghosttrack.errors import UserError
from ghosttrack.runtime import files
from ghosttrack.runtime.progress import Progress
from ghosttrack.sae import Sae
from ghosttrack.settings import OriginalTrackingSettings
from ghosttrack.tracks import track_table
from ghosttrack.tracks.neighbour_run import LinkKind, compare_as
from ghosttrack.tracks.neighbours import LayerLinks, Links, links, load_links
from ghosttrack.tracks.original import OriginalPlan
from ghosttrack.tracks.similarity import DecoderCosine
from ghosttrack.tracks.track_table import ROWS, Table
from ghosttrack.tracks.tracking import (
    Detections,
    Followed,
    Options,
    detect,
    follow,
    relink,
    shuffled_order,
)

VARIANTS = ("default", "permuted", "random", "shuffled", "untracked")


class Store(Protocol):
    """What is read of an activation store."""

    @property
    def rows(self) -> int: ...  # noqa: D102
    @property
    def massive(self) -> NDArray[np.bool_]: ...  # noqa: D102
    def read(self, start: int, stop: int) -> NDArray[np.float16]: ...  # noqa: D102
    def release(self) -> None: ...  # noqa: D102


def load_saes(weights: Sequence[Path], *, decoders: bool) -> list[Sae]:
    """The autoencoder beside each weight file; without its decoder, half its memory, where nothing has a use for it."""
    loaded = []
    for path in weights:
        each = sae.load(path.parent)
        loaded.append(each if decoders else replace(each, W_dec=each.W_dec[:0].clone()))
    return loaded


class LinkPlan(NamedTuple):
    """Order in which layers are visited (positions), and the links between them: one and two steps ahead."""

    order: list[int]
    adjacent: list[Links | None]
    skip: list[Links | None]

    def follow(self, detections: Sequence[Detections], options: Options) -> Followed:
        """Link the detections of every layer, in this order."""
        return follow(detections, self.adjacent, self.skip, options)


class Plan(Protocol):
    """How a variant links: see LinkPlan and OriginalPlan."""

    @property
    def order(self) -> list[int]: ...  # noqa: D102
    def follow(self, detections: Sequence[Detections], options: Options) -> Followed: ...  # noqa: D102


def plan_original(
    variant: str, saes: Sequence[Sae], prices: OriginalTrackingSettings, seed: int
) -> OriginalPlan:
    """A variant of the original's association: each decoder's coordinates permuted, no links, or shuffled layers.

    Args:
        saes: of the analysed layers, with their decoders.
    """
    order = shuffled_order(len(saes), seed) if variant == "shuffled" else list(range(len(saes)))
    decoders = [torch.nn.functional.normalize(saes[position].W_dec, dim=1) for position in order]
    if variant == "permuted":
        generator = np.random.default_rng(seed)
        decoders = [
            each[:, torch.from_numpy(generator.permutation(each.shape[1]))] for each in decoders
        ]
    if variant == "untracked":
        prices = prices.model_copy(update={"association": 0.0})  # no price is below
    return OriginalPlan(order, decoders, prices)


def plan_links(
    variant: str,
    layers: Sequence[int],
    neighbours: Sequence[Path],
    saes: Sequence[Sae],
    *,
    kind: LinkKind,
    count: int,
    quantile: float,
    seed: int,
) -> LinkPlan:
    """Links of a variant: as stored, of permuted decoders, none, or between shuffled layers (compared here).

    Args:
        layers: analysed layers, ascending; `saes` goes with them, `neighbours` with all but the last.
        kind, count, quantile: what makes features alike, neighbours per feature and gate, for the pairs that no file holds.
    Raises:
        UserError: a file holds other layers than expected.
    """
    steps = len(layers) - 1
    natural = list(range(len(layers)))
    if variant == "untracked":
        return LinkPlan(natural, [None] * steps, [None] * max(0, steps - 1))
    if variant == "shuffled":
        order = shuffled_order(len(layers), seed)

        def between(step: int, ahead: int) -> Links:
            lower, upper = order[step], order[step + ahead]
            similarity = DecoderCosine(
                saes[lower].W_dec, saes[upper].W_dec, [seed, layers[lower], layers[upper]]
            )
            found = compare_as(kind, similarity, count, quantile)
            return links(found.real, found.gate)

        return LinkPlan(
            order,
            [between(step, 1) for step in range(steps)],
            [between(step, 2) for step in range(steps - 1)],
        )
    stored: list[LayerLinks] = []
    for position, path in enumerate(neighbours):
        found = load_links(path, permuted=variant == "permuted")
        expected = list(layers[position : position + 3])
        if found.layers != expected or len(found.adjacent.start) != saes[position].d_sae + 1:
            raise UserError(
                f"{path}: links layers {found.layers} with {len(found.adjacent.start) - 1} features, expected "
                f"{expected} with {saes[position].d_sae}: delete it and run again, rule find_neighbours remakes it"
            )
        stored.append(found)
    return LinkPlan(
        natural, [found.adjacent for found in stored], [found.skip for found in stored[:-1]]
    )


class Counts:
    """Sums over all tokens, per layer in the order visited."""

    def __init__(self, layers: int) -> None:
        self.tokens = self.candidates = self.hard = 0
        self.activation = np.zeros(layers)
        self.detections, self.rescued, self.births, self.adjacent, self.coasted = np.zeros(
            (5, layers), dtype=np.int64
        )

    def add(self, table: Table, tracked: int, top_k: int) -> None:
        """Count a table's detections and links; `tracked` tokens were looked at."""
        self.tokens += tracked
        present = table.feature >= 0
        self.activation += table.activation[:, :, :top_k].sum((0, 2), dtype=np.float64)
        self.detections += present.sum((0, 2))
        self.rescued += present[:, :, top_k:].sum((0, 2))
        self.births += (present & (table.gap == 0)).sum((0, 2))
        self.adjacent += (table.gap == 1).sum((0, 2))
        self.coasted += (table.gap == 2).sum((0, 2))

    def scale(self) -> list[float]:
        """Mean activation of the strongest top_k detections, per layer; 1 where there are none."""
        strongest = self.detections - self.rescued
        return [
            float(value)
            for value in np.where(strongest, self.activation / np.maximum(strongest, 1), 1.0)
        ]

    def as_dict(self) -> dict[str, Any]:
        """For the manifest. `hard_candidates` are links that only the solver could decide."""
        per_layer = {
            name: getattr(self, name).tolist()
            for name in ("detections", "rescued", "births", "adjacent", "coasted")
        }
        return {
            "tracked_tokens": self.tokens,
            "candidates": self.candidates,
            "hard_candidates": self.hard,
            **per_layer,
        }


def track(
    stores: Sequence[Store],
    saes: Sequence[Sae],
    layers: Sequence[int],
    plan: Plan,
    options: Options,
    variant: str,
    seed: int,
    directory: Path,
) -> dict[str, Any]:
    """Track every row of the stores and write the table; gives what the manifest says about it.

    A row that is massive in any layer has no detections: its code means nothing there.
    Memory is bounded by ROWS tokens, whatever the size of the data set.
    """
    rows = stores[0].rows
    if variant not in VARIANTS or any(store.rows != rows for store in stores):
        raise ValueError(
            f"variant {variant!r} or rows {[store.rows for store in stores]} do not fit"
        )
    excluded = np.any([store.massive for store in stores], axis=0)
    tracked = variant != "untracked"
    ranks = options.ranks if tracked else options.top_k
    counts, progress = Counts(len(plan.order)), Progress("tracking", rows, "tokens")
    width = min(ranks, max(each.d_sae for each in saes))
    with track_table.writer(
        directory, rows=rows, layers=len(plan.order), slots=width, chunk_slots=options.top_k
    ) as out:
        # A function of its own, so that one batch is gone before the next one comes.
        def batch(start: int, stop: int) -> None:
            found = [
                _detect(
                    stores[position].read(start, stop), saes[position], excluded[start:stop], ranks
                )
                for position in plan.order
            ]
            table, candidates, hard = plan.follow(found, options)
            if variant == "random":
                # ASSUME: batches have a fixed size, so draws by batch are the same on every machine.
                table = relink(table, options.top_k, np.random.default_rng([seed, start]))
            out.append(table)
            counts.add(table, stop - start - int(excluded[start:stop].sum()), options.top_k)
            counts.candidates, counts.hard = counts.candidates + candidates, counts.hard + hard

        for start in range(0, rows, ROWS):
            batch(start, min(start + ROWS, rows))
            for store in stores:
                store.release()
            progress.advance(min(ROWS, rows - start))
        about = {
            "schema": track_table.SCHEMA,
            "variant": variant,
            "layers": [layers[position] for position in plan.order],
            "rows": rows,
            "top_k": options.top_k,
            "activation_scale": counts.scale(),
        }
        out.finish(about)
        slots = out.used
    return {
        **about,
        "slots": slots,
        "options": options._asdict(),
        "counts": counts.as_dict(),
        "store_sha256": track_table.digest(directory),
    }


def _detect(
    values: NDArray[np.float16], encoder: Sae, excluded: NDArray[np.bool_], ranks: int
) -> Detections:
    with torch.inference_mode():
        code = encoder.encode(torch.from_numpy(values.astype(np.float32))).numpy()
    code[excluded] = 0
    return detect(code, ranks)


def input_digests(**paths: Sequence[Path]) -> dict[str, list[str]]:
    """Hex SHA-256 of the files a job read, by their kind."""
    return {kind: [files.sha256_file(path) for path in given] for kind, given in paths.items()}

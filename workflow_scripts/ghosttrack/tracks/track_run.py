"""Track one data set: activations -> SAE codes -> tracks on disk, batch by batch."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ghosttrack import sae
from ghosttrack.runtime import files
from ghosttrack.runtime.progress import Progress
from ghosttrack.sae import Sae
from ghosttrack.settings import OriginalTrackingSettings
from ghosttrack.tracks import track_table
from ghosttrack.tracks.neighbour_run import LinkKind, compare_as
from ghosttrack.tracks.neighbours import LayerLinks, Links, links, load_links
from ghosttrack.tracks.original import OriginalPlan
from ghosttrack.tracks.similarity import DecoderCosine
from ghosttrack.tracks.token_errors import ActivationRows
from ghosttrack.tracks.track_table import ROWS, TrackTable
from ghosttrack.tracks.tracking import (
    Detections,
    TrackerOptions,
    TrackingResult,
    detect,
    follow,
    shuffle_links,
    shuffled_order,
)

VARIANTS = ("default", "permuted", "random", "shuffled", "untracked")


def load_saes(weights: Sequence[Path], *, decoders: bool) -> list[Sae]:
    """Load the SAE beside each weight file. Without the decoder it needs half the memory."""
    loaded = []
    for path in weights:
        model = sae.load(path.parent)
        loaded.append(model if decoders else replace(model, W_dec=model.W_dec[:0].clone()))
    return loaded


class LinkPlan(NamedTuple):
    """The order in which layers are visited (positions), and the links one and two layers ahead."""

    order: list[int]
    adjacent: list[Links | None]
    skip: list[Links | None]

    def follow(self, detections: Sequence[Detections], options: TrackerOptions) -> TrackingResult:
        """Link the detections of every layer, in this order."""
        return follow(detections, self.adjacent, self.skip, options)


class TrackingPlan(Protocol):
    """How a variant links detections: a LinkPlan or an OriginalPlan."""

    @property
    def order(self) -> list[int]:
        """Positions of the layers in the order of the visit."""

    def follow(self, detections: Sequence[Detections], options: TrackerOptions) -> TrackingResult:
        """Link the detections of every layer, in this order."""


def plan_original(
    variant: str, saes: Sequence[Sae], costs: OriginalTrackingSettings, seed: int
) -> OriginalPlan:
    """The plan of a variant with the original's association.

    The variant `permuted` permutes the coordinates of each decoder, `untracked` has no links, and
    `shuffled` visits the layers in random order.

    Args:
        saes: of the analysed layers, with their decoders.
    """
    order = shuffled_order(len(saes), seed) if variant == "shuffled" else list(range(len(saes)))
    decoders = [torch.nn.functional.normalize(saes[position].W_dec, dim=1) for position in order]
    if variant == "permuted":
        generator = np.random.default_rng(seed)
        decoders = [
            decoder[:, torch.from_numpy(generator.permutation(decoder.shape[1]))]
            for decoder in decoders
        ]
    if variant == "untracked":
        costs = costs.model_copy(update={"association": 0.0})  # no cost is below 0
    return OriginalPlan(order, decoders, costs)


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
    """The plan of a variant with gated links.

    The links come from the neighbour files (of permuted decoders for `permuted`), are computed here
    between layers in random order (`shuffled`), or are none (`untracked`).

    Args:
        layers: analysed layers, ascending; one SAE each, and one neighbour file each but for the
            last.
        kind: similarity measure, for links computed here.
        count: neighbours per feature, for links computed here.
        quantile: quantile of the null that sets the gate, for links computed here.

    Raises:
        UserError: a neighbour file is of other layers or of SAEs of another size.
    """
    steps = len(layers) - 1
    natural = list(range(len(layers)))
    if variant == "untracked":
        return LinkPlan(natural, [None] * steps, [None] * max(0, steps - 1))
    if variant == "shuffled":
        order = shuffled_order(len(layers), seed)
        return computed_links(order, layers, saes, kind, count, quantile, seed)
    stored: list[LayerLinks] = []
    for position, path in enumerate(neighbours):
        stored.append(load_links(path, permuted=variant == "permuted"))
        stored[-1].require(path, layers[position : position + 3], saes[position].d_sae)
    return LinkPlan(
        natural, [entry.adjacent for entry in stored], [entry.skip for entry in stored[:-1]]
    )


def computed_links(
    order: list[int],
    layers: Sequence[int],
    saes: Sequence[Sae],
    kind: LinkKind,
    count: int,
    quantile: float,
    seed: int,
) -> LinkPlan:
    """A plan whose links are computed here, by the cosine of decoder rows.

    Args:
        order: positions of the layers in the order of the visit.
        layers, kind, count, quantile: as in `plan_links`.
        saes: of the analysed layers, with their decoders.
    """

    def between(step: int, ahead: int) -> Links:
        lower, upper = order[step], order[step + ahead]
        similarity = DecoderCosine(
            saes[lower].W_dec, saes[upper].W_dec, [seed, layers[lower], layers[upper]]
        )
        comparison = compare_as(kind, similarity, count, quantile)
        return links(comparison.real, comparison.gate)

    steps = len(layers) - 1
    return LinkPlan(
        order,
        [between(step, 1) for step in range(steps)],
        [between(step, 2) for step in range(steps - 1)],
    )


class TrackCounts:
    """Sums over all tokens, per layer in the order visited."""

    def __init__(self, layers: int) -> None:
        self.tokens = self.candidates = self.hard = 0
        self.activation = np.zeros(layers)
        self.detections, self.second_association, self.births, self.adjacent, self.coasted = (
            np.zeros((5, layers), dtype=np.int64)
        )

    def add(self, table: TrackTable, tracked: int, top_k: int) -> None:
        """Add the detections and links of a table with `tracked` included tokens."""
        self.tokens += tracked
        present = table.feature >= 0
        self.activation += table.activation[:, :, :top_k].sum((0, 2), dtype=np.float64)
        self.detections += present.sum((0, 2))
        self.second_association += present[:, :, top_k:].sum((0, 2))
        self.births += (present & (table.gap == 0)).sum((0, 2))
        self.adjacent += (table.gap == 1).sum((0, 2))
        self.coasted += (table.gap == 2).sum((0, 2))

    def scale(self) -> list[float]:
        """Mean activation of the strongest top_k detections, per layer; 1 without any."""
        strongest = self.detections - self.second_association
        return [
            float(value)
            for value in np.where(strongest, self.activation / np.maximum(strongest, 1), 1.0)
        ]

    def as_dict(self) -> dict[str, Any]:
        """The counts for the manifest; `hard_candidates` are links that needed the solver."""
        per_layer = {
            name: getattr(self, name).tolist()
            for name in ("detections", "second_association", "births", "adjacent", "coasted")
        }
        return {
            "tracked_tokens": self.tokens,
            "candidates": self.candidates,
            "hard_candidates": self.hard,
            **per_layer,
        }


def track(
    stores: Sequence[ActivationRows],
    saes: Sequence[Sae],
    layers: Sequence[int],
    plan: TrackingPlan,
    options: TrackerOptions,
    variant: str,
    seed: int,
    directory: Path,
) -> dict[str, Any]:
    """Track every row of the stores, write the table, and return its manifest.

    A row with a massive activation in any layer has no detections, because its code has no meaning
    there. Memory depends on ROWS, not on the size of the data set.

    Raises:
        ValueError: unknown variant, or stores with different numbers of rows.
    """
    rows = stores[0].rows
    if variant not in VARIANTS or any(store.rows != rows for store in stores):
        raise ValueError(
            f"variant {variant!r} must be one of {VARIANTS}, "
            f"and the stores' rows must be equal: {[store.rows for store in stores]}"
        )
    excluded = np.any([store.massive for store in stores], axis=0)
    tracked = variant != "untracked"
    ranks = options.ranks if tracked else options.top_k
    counts, progress = TrackCounts(len(plan.order)), Progress("tracking", rows, "tokens")
    width = min(ranks, max(model.d_sae for model in saes))
    with track_table.writer(
        directory, rows=rows, layers=len(plan.order), slots=width, chunk_slots=options.top_k
    ) as out:
        # A function, so that one batch is freed before the next one is read.
        def batch(start: int, stop: int) -> None:
            detections = [
                _detect(
                    stores[position].read(start, stop), saes[position], excluded[start:stop], ranks
                )
                for position in plan.order
            ]
            table, candidates, hard = plan.follow(detections, options)
            if variant == "random":
                # ASSUME: the batch size is fixed, so draws per batch are the same on every machine.
                table = shuffle_links(table, options.top_k, np.random.default_rng([seed, start]))
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
    values: NDArray[np.floating[Any]], encoder: Sae, excluded: NDArray[np.bool_], ranks: int
) -> Detections:
    with torch.inference_mode():
        code = encoder.encode(torch.from_numpy(values.astype(np.float32))).numpy()
    code[excluded] = 0
    return detect(code, ranks)


def input_digests(**paths: Sequence[Path]) -> dict[str, list[str]]:
    """Hex SHA-256 of the files that a job read, by kind."""
    return {kind: [files.sha256_file(path) for path in group] for kind, group in paths.items()}

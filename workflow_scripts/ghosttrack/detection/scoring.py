"""From texts to log-odds: one forward pass, the SAEs of the analysed layers, and the saved detector's linear function."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from ghosttrack import sae
from ghosttrack.activations import example_extraction as reading
from ghosttrack.activations import extraction, hooks, limits
from ghosttrack.activations.example_tokens import Encoded
from ghosttrack.activations.layout import HALF_MAX
from ghosttrack.activations.packed_texts import Reader
from ghosttrack.detection import representations, saved
from ghosttrack.errors import UserError
from ghosttrack.inputs import models
from ghosttrack.inputs.sites import site_modules

Floats = NDArray[np.float64]
# Texts of one forward pass, about; changes nothing but rounding.
BATCH = 16


class Part(NamedTuple):
    """A feature of the `place`-th analysed layer: its mean activation on the answer, and its part of the log-odds."""

    place: int
    feature: int
    activation: float
    log_odds: float


class Reading(NamedTuple):
    """log_odds: (texts,); logprob, probe: one entry a judged token; parts: of each text, largest share first."""

    log_odds: Floats
    logprob: NDArray[np.float32]
    probe: Floats
    parts: list[list[Part]]


class Scorer:
    """A saved detector with its model and SAEs.

    Raises:
        UserError: the run has no detector, or its model or SAEs are not those that the detector was made with.
    """

    def __init__(self, run: Path) -> None:
        if not run.is_dir():
            raise UserError(
                f"{run} is not there: give the folder of a finished run, such as results/smollm2-135m"
            )
        found = saved.load(run / "detection")
        saved.require_same(found, run)
        self.about, self._weights, self.layers = found.about, found.weights, found.layers
        self._device = extraction.best_device()
        self.tokenizer = models.load_tokenizer(run / "model")
        self.limit = models.max_context(run / "model" / "config.json")
        self._model = models.load_model(run / "model", self._device)
        self._together = limits.read(run / "model_check.json").together
        self._modules = site_modules(self._model, self.layers, self.about["site"])
        self._saes = [sae.load(run / "saes" / f"layer_{layer:02d}") for layer in self.layers]
        self._tensors = {
            name: torch.from_numpy(getattr(self._weights, name)).to(self._device)
            for name in ("raw", "code", "effect", "massive")
        }

    def read(
        self,
        encoded: Sequence[Encoded],
        count: int,
        removed: Sequence[Sequence[tuple[int, int]]] | None = None,
    ) -> Reading:
        """Score some texts, short ones together in a forward pass.

        Args:
            count: how many features to name for each text, those with the largest share of the log-odds.
            removed: for each text the features, (place, feature), whose parts are taken out of their layers' activations at
                the answer's tokens while the model runs, so that all that follows is computed without them.
        """
        starts = reading.row_starts(encoded)
        scores = reading.TextScores.empty(encoded)
        probe = np.full(int(starts[-1]), float(self._weights.probe_intercept[0]))
        parts: list[list[Part]] = [[] for _ in encoded]
        with ExitStack() as stack, torch.inference_mode():
            reader = Reader(self._model, self._together)
            reader.begin(encoded)
            cut = stack.enter_context(self._removing()) if removed is not None else None
            outputs = stack.enter_context(hooks.captured(self._modules, stop=False))
            for pack in reader.packs(encoded, range(len(encoded)), BATCH):
                texts = range(len(pack.numbers))
                own, places = reading.read_rows(encoded, pack, texts, starts)
                text = torch.from_numpy(
                    np.repeat(texts, [len(encoded[number].read) for number in pack.numbers])
                )
                if cut is not None and removed is not None:
                    cut.aim(text, places, [removed[number] for number in pack.numbers])
                final = reader.final(pack)
                reading.score_texts(reader, encoded, pack, texts, final, scores)
                best: list[list[Part]] = [[] for _ in texts]
                for place in range(len(self.layers)):
                    probe[own] += self._layer(place, outputs[place][0, places], text, best, count)
                for number, found in zip(pack.numbers, best, strict=True):
                    parts[number] = sorted(found, key=lambda part: -abs(part.log_odds))[:count]
        table = reading.output_table(encoded, scores)
        return Reading(self._log_odds(table, probe), scores.of_read(encoded).logprob, probe, parts)

    def _log_odds(self, table: pd.DataFrame, probe: Floats) -> Floats:
        features = representations.output_features(table.assign(id=range(len(table))))
        outputs = features.iloc[:, saved.features_named(list(features.columns))].to_numpy(
            dtype=np.float64
        )
        means = (
            np.add.reduceat(probe, table["row_start"].to_numpy()) / table["row_count"].to_numpy()
        )
        return np.asarray(
            self._weights.intercept[0] + outputs @ self._weights.outputs + means, dtype=np.float64
        )

    def _layer(
        self, place: int, x: torch.Tensor, text: torch.Tensor, best: list[list[Part]], count: int
    ) -> Floats:
        """Each row's part of its probe score from one layer, (rows,); adds the layer's largest parts to `best`.

        Args:
            x: (rows, d_model); text: (rows,) whose answer each belongs to, a place in `best`.
        """
        own = {name: values[place] for name, values in self._tensors.items()}
        kept = torch.linalg.vector_norm(x.float(), dim=1) <= own["massive"]
        if bool((x[kept].abs() > HALF_MAX).any()):
            raise UserError(
                f"a text has an activation beyond {HALF_MAX:,.0f} in layer {self.layers[place]}, which no text has that the "
                "detector was fitted on: it cannot be scored; leave it out"
            )
        # What a store keeps is half precision, so this is what the probes were fitted on.
        x = x.float().clamp(-HALF_MAX, HALF_MAX).half().float()
        z = self._saes[place].encode(x.cpu()).to(x.device)  # (rows, d_sae)
        number = text.to(x.device)
        tokens = torch.zeros(len(best), device=x.device).index_add_(
            0, number, torch.ones(len(x), device=x.device)
        )
        left = torch.zeros_like(tokens).index_add_(0, number, kept.float())
        kept = kept | (left[number] == 0)  # a text of attention sinks alone
        share = (
            kept.float() / torch.where(left == 0, tokens, left)[number]
        )  # of the mean over the answer
        if count:
            mean = torch.zeros(len(best), z.shape[1], device=x.device).index_add_(
                0, number, z * share[:, None]
            )
            added = mean * own["effect"]
            strongest = added.abs().topk(min(count, added.shape[1]), dim=1).indices
            for one, features in enumerate(strongest.tolist()):
                best[one] += [
                    Part(place, feature, float(mean[one, feature]), float(added[one, feature]))
                    for feature in features
                    if added[one, feature] != 0
                ]
        return np.asarray(
            ((x @ own["raw"] + z @ own["code"]) * share * tokens[number]).double().cpu().numpy()
        )

    @contextmanager
    def _removing(self) -> Iterator["_Removal"]:
        cut = _Removal(self._saes)
        handles = [
            module.register_forward_hook(
                lambda _module, _arguments, output, place=place: cut.apply(place, output)
            )
            for place, module in enumerate(self._modules)
        ]
        try:
            yield cut
        finally:
            for handle in handles:
                handle.remove()


class _Removal:
    """Takes features out of activations on their way: x - z d for each, z as the SAE sees it in the running model."""

    def __init__(self, saes: Sequence[sae.Sae]) -> None:
        self._saes = saes

    def aim(
        self,
        text: torch.Tensor,
        places: torch.Tensor,
        features: Sequence[Sequence[tuple[int, int]]],
    ) -> None:
        """Which features of each text of the pack, and whose answer's tokens are where in it, (rows,)."""
        self._text, self._places = text, places
        self._masks = [torch.zeros(len(features), each.d_sae) for each in self._saes]
        for number, chosen in enumerate(features):
            for place, feature in chosen:
                self._masks[place][number, feature] = 1

    def apply(self, place: int, output: Any) -> Any:
        """The block's output without them."""
        mask = self._masks[place]
        if not mask.any():
            return None  # as it was
        x, own = models.first_tensor(output), self._saes[place]
        rows = x[0, self._places]
        z = own.encode(rows.float().cpu()) * mask[self._text]
        x = x.clone()
        x[0, self._places] = rows - (z @ own.W_dec).to(rows)
        return models.with_first_tensor(output, x)

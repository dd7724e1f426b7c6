"""Score texts with the saved detector: forward pass, SAEs, and a linear function."""

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
from ghosttrack.activations.packed_texts import PackedReader
from ghosttrack.activations.store import as_stored
from ghosttrack.detection import representations, saved
from ghosttrack.errors import UserError
from ghosttrack.inputs import models
from ghosttrack.inputs.sites import site_modules
from ghosttrack.runtime.run_paths import RunPaths

Floats = NDArray[np.float64]
# Approximate number of texts per forward pass; it affects rounding alone.
BATCH = 16


class FeatureContribution(NamedTuple):
    """A feature's mean activation on the answer, and its contribution to the log-odds.

    layer_index: index into the analysed layers.
    """

    layer_index: int
    feature: int
    activation: float
    log_odds: float


class ScoredBatch(NamedTuple):
    """Results of several texts.

    log_odds: (texts,); logprob, probe: (answer tokens,); contributions: by text, largest first.
    total, absolute: (texts,) sums of the contributions, and of their absolute values, over all
    features; 0 if no contributions are asked for.
    """

    log_odds: Floats
    logprob: NDArray[np.float32]
    probe: Floats
    contributions: list[list[FeatureContribution]]
    total: Floats
    absolute: Floats


class Scorer:
    """A saved detector with its model and SAEs.

    The model runs in the precision of the run, also on another device.

    Args:
        run: folder of a finished run.
        gpus: over which the model is spread.
    Raises:
        UserError: the run has no detector, or its model, its precision or its SAEs are not those
            that the detector was trained on.
    """

    def __init__(self, run: Path, gpus: int = 1) -> None:
        if not run.is_dir():
            raise UserError(
                f"{run} does not exist: give the folder of a finished run, such as "
                "results/smollm2-135m"
            )
        detector = saved.load(RunPaths(run).detection)
        saved.require_same(detector, run)
        self.detector = detector
        self.about, self._weights, self.layers = detector.about, detector.weights, detector.layers
        self._device = extraction.best_device()
        self.tokenizer = models.load_tokenizer(run / "model")
        self.limit = models.max_context(run / "model" / "config.json")
        precision = limits.read_precision(run / "model_check.json")
        saved.require_precision(detector, precision, run)
        self._model = models.load_model(run / "model", self._device, precision, gpus)
        self._packed = limits.read(run / "model_check.json").packed
        self._scales = limits.scales(run / "model_check.json", self.layers)
        self._modules = site_modules(self._model, self.layers, self.about["site"])
        self._saes = [sae.load(RunPaths(run).sae(layer)) for layer in self.layers]
        self._tensors = {
            name: torch.from_numpy(getattr(self._weights, name)).to(self._device)
            for name in ("raw", "code", "effect", "massive")
        }

    def reading(self) -> dict[str, Any]:
        """Arguments with which a `StatementReader` uses the same model."""
        return {
            "model": self._model,
            "tokenizer": self.tokenizer,
            "site": self.about["site"],
            "limit": self.limit,
            "batch": BATCH,
            "packed": self._packed,
        }

    def read(
        self,
        encoded: Sequence[Encoded],
        count: int,
        removed: Sequence[Sequence[tuple[int, int]]] | None = None,
    ) -> ScoredBatch:
        """Score texts; short texts share a forward pass.

        Args:
            count: number of contributions per text, the largest ones.
            removed: by text, the features (layer_index, feature) to ablate: their decoder
                directions are subtracted from the activations at the answer tokens during the
                forward pass.
        """
        starts = reading.row_starts(encoded)
        scores = reading.TextScores.empty(encoded)
        probe = np.full(int(starts[-1]), float(self._weights.probe_intercept[0]))
        contributions: list[list[FeatureContribution]] = [[] for _ in encoded]
        sums = np.zeros((2, len(encoded)))
        with ExitStack() as stack, torch.inference_mode():
            reader = PackedReader(self._model, self._packed, share_answers=removed is None)
            reader.cache_prefixes(encoded)
            ablation = stack.enter_context(self._ablating()) if removed is not None else None
            outputs = stack.enter_context(hooks.captured(self._modules, stop=False))
            for pack in reader.packs(encoded, range(len(encoded)), BATCH):
                texts = range(len(pack.numbers))
                rows, positions = reading.read_rows(encoded, pack, texts, starts)
                text = torch.from_numpy(
                    np.repeat(texts, [len(encoded[number].read) for number in pack.numbers])
                )
                if ablation is not None and removed is not None:
                    ablation.aim(text, positions, [removed[number] for number in pack.numbers])
                final = reader.final(pack)
                reading.score_texts(reader, encoded, pack, texts, final, scores)
                best: list[list[FeatureContribution]] = [[] for _ in texts]
                added = np.zeros((2, len(best)))
                for index in range(len(self.layers)):
                    x = outputs[index][0, positions].to(self._device).float()
                    probe[rows] += self._layer(index, x, text, best, count, added)
                sums[:, pack.numbers] = added
                for number, features in zip(pack.numbers, best, strict=True):
                    contributions[number] = sorted(
                        features, key=lambda feature: -abs(feature.log_odds)
                    )[:count]
        table = reading.output_table(encoded, scores)
        return ScoredBatch(
            self._log_odds(table, probe),
            scores.of_read(encoded).logprob,
            probe,
            contributions,
            *sums,
        )

    def _log_odds(self, table: pd.DataFrame, probe: Floats) -> Floats:
        features = representations.output_features(table.assign(id=range(len(table))))
        outputs = features.iloc[:, saved.output_columns(list(features.columns))].to_numpy(
            dtype=np.float64
        )
        means = (
            np.add.reduceat(probe, table["row_start"].to_numpy()) / table["row_count"].to_numpy()
        )
        return np.asarray(
            self._weights.intercept[0] + outputs @ self._weights.outputs + means, dtype=np.float64
        )

    def _layer(
        self,
        layer_index: int,
        x: torch.Tensor,
        text: torch.Tensor,
        best: list[list[FeatureContribution]],
        count: int,
        sums: Floats,
    ) -> Floats:
        """One layer's part of each row's probe score, (rows,).

        Args:
            x: (rows, d_model) float32 activations of answer tokens, on the scorer's device.
            text: (rows,) index of each row's text.
            best: contributions by text; the layer's `count` largest are added.
            sums: (2, texts) sums of all contributions and of their absolute values, to add to.
        """
        weights = {name: values[layer_index] for name, values in self._tensors.items()}
        included = torch.linalg.vector_norm(x, dim=1) <= weights["massive"]
        largest = HALF_MAX * self._scales[layer_index]
        if bool((x[included].abs() > largest).any()):
            raise UserError(
                f"a text has an activation beyond {largest:,.0f} in layer "
                f"{self.layers[layer_index]}, outside the range "
                "of the texts that the detector was fitted on: it cannot be scored; leave it out"
            )
        # The probes were fitted on activations in half precision, as stores keep them.
        x = as_stored(x, self._scales[layer_index])
        z = self._saes[layer_index].encode(x.cpu()).to(x.device)  # (rows, d_sae)
        number = text.to(x.device)
        tokens = torch.zeros(len(best), device=x.device).index_add_(
            0, number, torch.ones(len(x), device=x.device)
        )
        n_included = torch.zeros_like(tokens).index_add_(0, number, included.float())
        included = included | (n_included[number] == 0)  # an answer of attention sinks only
        share = (
            included.float() / torch.where(n_included == 0, tokens, n_included)[number]
        )  # weight in the mean over the answer
        if count:
            mean = torch.zeros(len(best), z.shape[1], device=x.device).index_add_(
                0, number, z * share[:, None]
            )
            added = mean * weights["effect"]
            sums += torch.stack([added.sum(1), added.abs().sum(1)]).double().cpu().numpy()
            strongest = added.abs().topk(min(count, added.shape[1]), dim=1).indices
            for one, features in enumerate(strongest.tolist()):
                best[one] += [
                    FeatureContribution(
                        layer_index, feature, float(mean[one, feature]), float(added[one, feature])
                    )
                    for feature in features
                    if added[one, feature] != 0
                ]
        return np.asarray(
            ((x @ weights["raw"] + z @ weights["code"]) * share * tokens[number])
            .double()
            .cpu()
            .numpy()
        )

    @contextmanager
    def _ablating(self) -> Iterator["_Ablation"]:
        ablation = _Ablation(self._saes)
        handles = [
            module.register_forward_hook(
                lambda _module, _arguments, output, index=index: ablation.apply(index, output)
            )
            for index, module in enumerate(self._modules)
        ]
        try:
            yield ablation
        finally:
            for handle in handles:
                handle.remove()


class _Ablation:
    """Ablates features in the running model: x - z d, with z = SAE(x) on the current x."""

    def __init__(self, saes: Sequence[sae.Sae]) -> None:
        self._saes = saes

    def aim(
        self,
        text: torch.Tensor,
        positions: torch.Tensor,
        features: Sequence[Sequence[tuple[int, int]]],
    ) -> None:
        """Set the features of each text in the pack.

        `text`, `positions`: text and position of each row, (rows,).
        """
        self._text, self._positions = text, positions
        self._masks = [torch.zeros(len(features), each.d_sae) for each in self._saes]
        for number, chosen in enumerate(features):
            for layer_index, feature in chosen:
                self._masks[layer_index][number, feature] = 1

    def apply(self, layer_index: int, output: Any) -> Any:
        """The block's output without the features, or None (unchanged) if the layer has none."""
        mask = self._masks[layer_index]
        if not mask.any():
            return None
        x, layer_sae = models.first_tensor(output), self._saes[layer_index]
        rows = x[0, self._positions]
        z = layer_sae.encode(rows.float().cpu()) * mask[self._text]
        x = x.clone()
        x[0, self._positions] = rows - (z @ layer_sae.W_dec).to(rows)
        return models.with_first_tensor(output, x)

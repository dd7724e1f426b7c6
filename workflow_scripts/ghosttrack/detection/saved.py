"""The saved detector: a linear function of output features, activations and SAE codes.

With an answer token's activation x and SAE code z in each layer:

    log-odds of "hallucinated" = intercept + output features . outputs + mean token probe score
    probe score of a token = probe_intercept + sum over layers of (x . raw + z . code)

`raw` and `code` include the probe on the SAE residual x - decode(z); all weights include the
calibration.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ghosttrack.errors import UserError
from ghosttrack.inputs.model_precision import FLOAT32, Precision
from ghosttrack.runtime import files, records
from ghosttrack.runtime.run_paths import RunPaths

SCHEMA = 3
WEIGHTS_NAME, ABOUT_NAME = "detector.safetensors", "detector.json"
# Output features that need no other texts of a data set, a subset of
# `representations.output_features`.
OUTPUTS = (
    "logprob_sum",
    "logprob_mean",
    "logprob_min",
    "logprob_first",
    "entropy_mean",
    "entropy_first",
    "margin_mean",
    "margin_first",
    "rank_first",
    "text_logprob_mean",
    "surprise_first",
    "surprise_mean",
    "doubt_mean",
)


class Weights(NamedTuple):
    """Weights of the saved detector, float64 except for the large arrays in float32.

    outputs: (len(OUTPUTS),); raw: (layers, d_model); code: (layers, d_sae).
    effect: (layers, d_sae), decrease of a token's log-odds when one unit of the feature's
    activation is subtracted from its layer, without the residual's part.
    massive: (layers,) norm above which a token counts as an attention sink and is excluded.
    """

    intercept: NDArray[np.float64]
    outputs: NDArray[np.float64]
    probe_intercept: NDArray[np.float64]
    raw: NDArray[np.float32]
    code: NDArray[np.float32]
    effect: NDArray[np.float32]
    massive: NDArray[np.float64]


class SavedDetector(NamedTuple):
    """A detector with its metadata, the content of detector.json."""

    weights: Weights
    about: Mapping[str, Any]

    @property
    def layers(self) -> list[int]:
        """Layers that the detector reads, ascending."""
        return [int(layer) for layer in self.about["layers"]]


def save(
    weights: Weights | None, about: Mapping[str, Any], weights_path: Path, about_path: Path
) -> None:
    """Write both files atomically.

    Without weights, `about["reason"]` says why there is no detector.
    """
    from safetensors.numpy import save as to_bytes

    content = (
        {}
        if weights is None
        else {name: np.ascontiguousarray(value) for name, value in weights._asdict().items()}
    )
    stored = to_bytes(content)
    with files.atomic_write(weights_path, "wb") as stream:
        stream.write(stored)
    digest = hashlib.sha256(stored).hexdigest()
    described = {"schema": SCHEMA, "outputs": list(OUTPUTS), "detector_sha256": digest, **about}
    files.write_json(about_path, {**described, "about_sha256": files.sha256_json(described)})


def load(folder: Path) -> SavedDetector:
    """Read the detector from the detection/ folder of a run.

    Raises:
        UserError: it is missing, damaged, of another schema, or the run had too little data to
            train one.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    weights_path, about_path = folder / WEIGHTS_NAME, folder / ABOUT_NAME
    if not weights_path.is_file() or not about_path.is_file():
        raise UserError(
            f"{folder.parent} has no saved detector ({weights_path} is missing): give the folder "
            "of a finished run, such as results/smollm2-135m, or finish the run with the command "
            "that started it"
        )
    about = files.read_object(about_path)
    sealed = about.pop("about_sha256", "")
    if about.get("schema") != SCHEMA or about.get("outputs") != list(OUTPUTS):
        raise UserError(
            f"{about_path} was written by another version of GhostTrack: run the workflow again"
        )
    if about.get("reason"):
        raise UserError(f"{folder.parent} has no detector: {about['reason']}")
    if sealed != files.sha256_json(about):
        raise UserError(
            f"{about_path} was changed after save_detector wrote it (damaged or edited): delete "
            "it and run the workflow again"
        )
    try:
        stored = weights_path.read_bytes()
        if hashlib.sha256(stored).hexdigest() != about["detector_sha256"]:
            raise UserError(
                f"{weights_path} was changed after save_detector wrote it (damaged or edited): "
                "delete it and run the workflow again"
            )
        return SavedDetector(Weights(**from_bytes(stored)), about)
    except (SafetensorError, TypeError) as error:
        raise UserError(f"{weights_path} is damaged ({error}): delete it and run again") from None


def require_same(saved: SavedDetector, run: Path) -> None:
    """Check by SHA-256 that model and SAEs of a run are those that the detector was trained on.

    Raises:
        UserError: a file differs or is missing.
    """
    expected = {Path("model") / name: digest for name, digest in saved.about["model"].items()}
    for layer, digests in saved.about["saes"].items():
        expected |= {
            RunPaths(Path()).sae(int(layer)) / name: digest for name, digest in digests.items()
        }
    for name, digest in expected.items():
        actual = records.digest_of(run / name)
        if actual != digest:
            state = (
                "is missing"
                if actual is None
                else "is not the file that the detector was trained on"
            )
            raise UserError(
                f"{run / name} {state}. Run the workflow again: it restores a damaged file, and "
                "trains the detector again if settings have changed"
            )


def require_precision(saved: SavedDetector, precision: Precision, run: Path) -> None:
    """Check that the detector was trained on activations in the precision of the run's model.

    Raises:
        UserError: it was trained in another precision.
    """
    trained = saved.about.get("model_precision", FLOAT32.name)
    if trained != precision.name:
        raise UserError(
            f"{run / 'detection' / ABOUT_NAME}: the detector was trained with the model in "
            f"{trained}, but {run / 'model_check.json'} says {precision.name}. Run the workflow "
            "again: it trains the detector again if settings have changed"
        )


def output_columns(names: Sequence[str]) -> list[int]:
    """Column indices of OUTPUTS in a table of output features with the columns `names`.

    Raises:
        UserError: the table lacks one of them.
    """
    missing = [name for name in OUTPUTS if name not in names]
    if missing:
        raise UserError(
            f"the output features lack {', '.join(missing)}, which the saved detector reads"
        )
    return [list(names).index(name) for name in OUTPUTS]

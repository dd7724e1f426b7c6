"""The saved detector: one linear function of what the model computes on an answer, kept without pickle.

log-odds of "hallucinated" = intercept + outputs . w + mean over the answer's tokens of their probe score;
probe score of a token = probe_intercept + sum over layers of x . raw + z . code, x its activation, z its SAE code.
The part that reads the SAE residual x - decode(z) is folded into `raw` and `code`; calibration is folded into all.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ghosttrack.errors import UserError
from ghosttrack.runtime import files, records

SCHEMA = 3
WEIGHTS_NAME, ABOUT_NAME = "detector.safetensors", "detector.json"
# Output features that a text has without its data set; `representations.output_features` may give more.
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
    """Everything that the score needs, float64 but for the wide ones in float32.

    outputs: (len(OUTPUTS),); raw: (layers, d_model); code: (layers, d_sae); effect: (layers, d_sae), by how much the log-odds
    of a token fall for one unit of a feature's activation that is taken out of its layer: code + decoder row . raw
    without the residual's part; massive: (layers,) norm from which on a token is an attention sink and left out.
    """

    intercept: NDArray[np.float64]
    outputs: NDArray[np.float64]
    probe_intercept: NDArray[np.float64]
    raw: NDArray[np.float32]
    code: NDArray[np.float32]
    effect: NDArray[np.float32]
    massive: NDArray[np.float64]


class SavedDetector(NamedTuple):
    """A detector and where it came from."""

    weights: Weights
    about: Mapping[str, Any]

    @property
    def layers(self) -> list[int]:
        """Layers that it reads, ascending."""
        return [int(layer) for layer in self.about["layers"]]


def save(
    weights: Weights | None, about: Mapping[str, Any], weights_path: Path, about_path: Path
) -> None:
    """Write the two files, atomically; without weights, `about` says in `reason` why there is no detector."""
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
    """Read a detector from a run's detection/ folder.

    Raises:
        UserError: it is missing, damaged, of another schema, or there was nothing to train it on.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    weights_path, about_path = folder / WEIGHTS_NAME, folder / ABOUT_NAME
    if not weights_path.is_file() or not about_path.is_file():
        raise UserError(
            f"{folder.parent} has no saved detector ({weights_path} is missing): give the folder of a run, such as "
            "results/smollm2-135m; if this is one, let it finish first with the command that began it"
        )
    about = dict(files.read_json(about_path))
    sealed = about.pop("about_sha256", "")
    if about.get("schema") != SCHEMA or about.get("outputs") != list(OUTPUTS):
        raise UserError(f"{about_path} is of another version of GhostTrack: run the workflow again")
    if about.get("reason"):
        raise UserError(f"{folder.parent} has no detector: {about['reason']}")
    if sealed != files.sha256_json(about):
        raise UserError(
            f"{about_path} is not what save_detector wrote (damaged or edited): delete it and run again"
        )
    try:
        stored = weights_path.read_bytes()
        if hashlib.sha256(stored).hexdigest() != about["detector_sha256"]:
            raise UserError(
                f"{weights_path} is not what save_detector wrote (damaged or edited): delete it and run again"
            )
        found = from_bytes(stored)
        return SavedDetector(Weights(**found), about)
    except (SafetensorError, TypeError) as error:
        raise UserError(f"{weights_path} is damaged ({error}): delete it and run again") from None


def require_same(saved: SavedDetector, run: Path) -> None:
    """Check by all their bytes that the model and the SAEs of a run are those that the detector was made with.

    Raises:
        UserError: naming the file that differs or is missing.
    """
    expected = {Path("model") / name: digest for name, digest in saved.about["model"].items()}
    for layer, digests in saved.about["saes"].items():
        expected |= {
            Path("saes") / f"layer_{int(layer):02d}" / name: digest
            for name, digest in digests.items()
        }
    for name, digest in expected.items():
        found = records.digest_of(run / name)
        if found != digest:
            state = (
                "is missing" if found is None else "is not the one that the detector was made with"
            )
            raise UserError(
                f"{run / name} {state}. Run the workflow again: it makes the file anew where it is damaged, and the "
                "detector where the settings have changed"
            )


def features_named(names: Sequence[str]) -> list[int]:
    """Places of OUTPUTS among the columns of a table of output features.

    Raises:
        UserError: the table lacks one.
    """
    missing = [name for name in OUTPUTS if name not in names]
    if missing:
        raise UserError(
            f"the output features lack {', '.join(missing)}, which the saved detector reads"
        )
    return [list(names).index(name) for name in OUTPUTS]

"""The saved statement detector: arrays in safetensors, and what they mean in json.

Both files are sealed by SHA-256, as the detector of answers is.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ghosttrack.detection import saved
from ghosttrack.detection.abstention import CONFIDENCES, Abstention
from ghosttrack.detection.left_out_kinds import StatementDetector
from ghosttrack.detection.statement_model import BASES, Fit, Reduction
from ghosttrack.errors import UserError
from ghosttrack.inputs.model_precision import FLOAT32
from ghosttrack.runtime import files

SCHEMA = 2
WEIGHTS_NAME, ABOUT_NAME = "statements.safetensors", "statements.json"
# What the arrays are made for; another version of the program may differ.
_LAYOUT = {"bases": list(BASES), "confidences": [float(confidence) for confidence in CONFIDENCES]}


class SavedStatements(NamedTuple):
    """A statement detector with the content of statements.json.

    detector: None if the run had too little data; `about["reason"]` says why.
    """

    detector: StatementDetector | None
    about: Mapping[str, Any]


def save(
    detector: StatementDetector | None,
    about: Mapping[str, Any],
    weights_path: Path,
    about_path: Path,
) -> None:
    """Write both files atomically. Without a detector, `about["reason"]` says why."""
    from safetensors.numpy import save as to_bytes

    stored = to_bytes({} if detector is None else _arrays(detector))
    with files.atomic_write(weights_path, "wb") as stream:
        stream.write(stored)
    described = {
        "schema": SCHEMA,
        **_LAYOUT,
        "detector_sha256": hashlib.sha256(stored).hexdigest(),
        **about,
    }
    files.write_json(about_path, {**described, "about_sha256": files.sha256_json(described)})


def load(folder: Path) -> SavedStatements:
    """Read the statement detector from the detection/ folder of a run.

    Raises:
        UserError: it is missing, damaged, or of another schema.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    weights_path, about_path = folder / WEIGHTS_NAME, folder / ABOUT_NAME
    if not weights_path.is_file() or not about_path.is_file():
        raise UserError(
            f"{folder.parent} has no detector of statements ({weights_path} is missing): run the "
            "workflow again with the command that started the run"
        )
    about = files.read_object(about_path)
    sealed = about.pop("about_sha256", "")
    if about.get("schema") != SCHEMA or any(about.get(key) != _LAYOUT[key] for key in _LAYOUT):
        raise UserError(
            f"{about_path} was written by another version of GhostTrack: run the workflow again"
        )
    remedy = (
        "was changed after save_statement_detector wrote it (damaged or edited): delete it and run "
        "the workflow again"
    )
    if sealed != files.sha256_json(about):
        raise UserError(f"{about_path} {remedy}")
    stored = weights_path.read_bytes()
    if hashlib.sha256(stored).hexdigest() != about["detector_sha256"]:
        raise UserError(f"{weights_path} {remedy}")
    if about.get("reason"):
        return SavedStatements(None, about)
    try:
        return SavedStatements(_detector(from_bytes(stored)), about)
    except (SafetensorError, KeyError, TypeError) as error:
        raise UserError(f"{weights_path} is damaged ({error}): delete it and run again") from None


def require_same(statements: SavedStatements, answers: saved.SavedDetector, folder: Path) -> None:
    """Check that both detectors of a run were trained on the same model.

    Raises:
        UserError: they were not.
    """
    for key in ("model", "site", "model_precision"):
        # Detectors of older runs do not name the precision: they were trained in float32.
        default = FLOAT32.name if key == "model_precision" else None
        if statements.about.get(key, default) != answers.about.get(key, default):
            raise UserError(
                f"{folder / ABOUT_NAME} and {folder / saved.ABOUT_NAME} differ in {key!r}: they come "
                "from different runs; run the workflow again"
            )


def _arrays(detector: StatementDetector) -> dict[str, NDArray[Any]]:
    result: dict[str, NDArray[Any]] = {}
    for part, values in detector._asdict().items():
        for name, value in values._asdict().items():
            if name == "weight":
                result |= {
                    f"fit.weight.{base}": one for base, one in zip(BASES, value, strict=True)
                }
            else:
                result[f"{part}.{name}"] = np.atleast_1d(value)
    return {name: np.ascontiguousarray(value) for name, value in result.items()}


def _detector(arrays: Mapping[str, NDArray[Any]]) -> StatementDetector:
    def part(name: str, fields: tuple[str, ...]) -> dict[str, Any]:
        return {field: arrays[f"{name}.{field}"] for field in fields}

    of_fit = part("fit", tuple(name for name in Fit._fields if name != "weight"))
    of_fit["weight"] = [arrays[f"fit.weight.{base}"] for base in BASES]
    return StatementDetector(
        Reduction(**part("reduction", Reduction._fields)),
        Fit(**of_fit),
        Abstention(**part("abstention", Abstention._fields)),
    )

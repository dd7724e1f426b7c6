"""What `model_check` measured: how far each fast way is exact, and the scales of the stores."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.inputs.model_precision import Precision
from ghosttrack.runtime import files


class Limits(NamedTuple):
    """Where each fast way gives what the reference gives; beyond it, jobs take a slower way.

    packed: longest packed sequence in tokens; 0: each text is read alone.
    padded: longest prompt with its continuation, in tokens, for which prompts of different lengths
        share a padded batch.
    cached: longest prompt with its continuation, in tokens, for which the KV cache is used.
    batched: whether inputs of the same length may share a batch.
    skipped: whether a pass may skip the blocks below a layer and reuse the output of the last.
    named: whether final norm and unembedding alone rank the tokens as the model does, so that
        features can be named by the tokens that they promote.
    """

    packed: int
    padded: int
    cached: int
    batched: bool
    skipped: bool
    named: bool

    def both(self, other: "Limits") -> "Limits":
        """What is exact under these limits and under `other`."""
        return Limits(
            min(self.packed, other.packed),
            min(self.padded, other.padded),
            min(self.cached, other.cached),
            self.batched and other.batched,
            self.skipped and other.skipped,
            self.named and other.named,
        )


def read(path: Path) -> Limits:
    """The limits in a model's model_check.json.

    Raises:
        UserError: the file is missing, or was not written by the check of a model.
    """
    try:
        return Limits(**_read(path)["limits"])
    except (KeyError, TypeError) as error:
        raise _refusal(path, "limits") from error


def read_precision(path: Path) -> Precision:
    """The precision in which a model was checked, from its model_check.json.

    Raises:
        UserError: as `read`.
    """
    try:
        # Checks from before this key ran in float32.
        return Precision(**_read(path).get("precision", {}))
    except TypeError as error:
        raise _refusal(path, "precision") from error


def require_precision(path: Path, precision: Precision) -> None:
    """Check that a job runs the model in the precision of the run's model_check.json.

    Raises:
        UserError: they differ, e.g. because jobs with `inference.dtype: auto` ran on different
            devices.
    """
    checked = read_precision(path)
    if checked == precision:
        return
    raise UserError(
        f"this job would run the model in {precision.name}, but {path} was written in "
        f"{checked.name}: all jobs of a run need one precision. Run all of them on machines with a "
        f"GPU or all without, or set inference.dtype: {checked.dtype} in the model's file; to "
        f"start anew in {precision.name}, delete {path}"
    )


def scales(path: Path, layers: Sequence[int | None]) -> list[int]:
    """The scales of the stores of these layers (None: the token embedding), powers of two.

    Args:
        path: a model's model_check.json; it lists the scales other than 1.
    Raises:
        UserError: the file is missing, or was not written by the check of a model.
    """
    listed = _read(path).get("scales", {})
    try:
        return [int(listed.get(scale_key(layer), 1)) for layer in layers]
    except (AttributeError, TypeError, ValueError) as error:
        raise _refusal(path, "scales") from error


def scale_key(layer: int | None) -> str:
    """Name of a layer among the `scales` of model_check.json."""
    return "embedding" if layer is None else str(layer)


def _read(path: Path) -> Any:
    about: Any = files.read_json(path)
    if not isinstance(about, dict):
        raise _refusal(path, "limits")
    return about


def _refusal(path: Path, what: str) -> UserError:
    return UserError(
        f"{path}: it does not hold the {what} of a checked model; delete it and run again, then "
        "the check is repeated"
    )
